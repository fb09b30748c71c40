"""The process that an engine's workers are forked from: clean, and not needed by those that run."""

import signal
from pathlib import Path

import psutil
from scene import decoding, running

from ghostserve.engine.launch import nursery


def test_a_nursery_that_dies_takes_nobody_along(llama_4: str, tmp_path: Path) -> None:
    """Its workers go on, one of them dies and is replaced, and the next standby comes from a new nursery."""
    with running(tmp_path / "points", model=llama_4, tensor_parallel_size=2, parity="rs:1", standbys=1) as stage:
        scene = stage.scene(standbys=1)
        first = nursery().pid
        scene.stream(3, prompt=30, tokens=24)
        scene.when(decoding(4)).do(psutil.Process(first).kill)
        scene.when(decoding(9)).kill(1)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(1)
        stage.until(lambda: stage.calm(1), "no standby came from a new nursery")
        assert nursery().pid != first
        scene.stream(2, prompt=20, tokens=12)
        scene.when(decoding(6)).kill(0)
        scene.finish(recoveries=2)
        scene.assert_undisturbed()


def test_without_a_standby_too(llama_4: str, tmp_path: Path) -> None:
    """The lost rank waits for the new nursery's imports."""
    with running(tmp_path / "points", model=llama_4, tensor_parallel_size=2, parity="rs:1", standbys=0) as stage:
        scene = stage.scene(standbys=0)
        first = psutil.Process(nursery().pid)
        scene.stream(2, prompt=30, tokens=24)

        def strike() -> None:
            first.kill()
            stage.signal(1, signal.SIGKILL)

        scene.when(decoding(8)).do(strike)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(1)
        scene.assert_undisturbed()


def test_it_is_fit_to_be_forked_and_keeps_nothing(llama_4: str, tmp_path: Path) -> None:
    """One thread, however many workers it had; no descriptor of theirs: what an engine gives back is given back."""
    process = psutil.Process(nursery().pid)
    with running(tmp_path / "points", model=llama_4, tensor_parallel_size=2, parity="rs:1", standbys=1) as stage:
        scene = stage.scene(standbys=1)
        busy = process.num_fds()
        scene.stream(2, prompt=30, tokens=12)
        scene.when(decoding(4)).kill(1)
        scene.finish(recoveries=1)
        stage.until(lambda: stage.calm(1), "the standby never came back")
        assert process.pid == nursery().pid
        assert (process.num_threads(), process.num_fds()) == (1, busy)
        assert len(process.children()) == 3
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" in maps, "the imports are behind it"
        assert "memfd" not in maps
        assert not any("memfd" in str(file.readlink()) for file in Path(f"/proc/{process.pid}/fd").iterdir())
    assert process.num_threads() == 1
    assert process.children() == []
    assert process.num_fds() == busy - 2 * 3, "of each worker a pidfd and the socket for its fate"
