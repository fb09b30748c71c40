"""Ten deaths in one engine's life leave nothing behind."""

import os
from collections.abc import Iterable
from pathlib import Path

import psutil
from scene import decoding, possessions, running, start_nursery

from ghostserve.engine.config import EngineConfig

DEATHS = 10


def test_ten_kills_leave_nothing_behind(llama_4: str, tmp_path: Path) -> None:
    shared_memory = sorted(os.listdir("/dev/shm"))
    start_nursery(EngineConfig(model=llama_4, device="cpu"))
    others = children(possessions())  # the nursery, and such as Python's resource tracker, where it was needed
    with running(tmp_path / "points", model=llama_4, tensor_parallel_size=2, parity="rs:1") as stage:
        scene = stage.scene(standbys=2)
        settled = possessions()
        for death in range(DEATHS):
            scene.stream(2, prompt=20, tokens=12)
            scene.when(decoding(6)).kill(death % 2)
            scene.finish(recoveries=death + 1)
        stage.until(lambda: stage.calm(2), "the standbys never came back")
        # Also while it lives: as many children, descriptors and threads as before.
        assert {k: v for k, v in possessions().items() if not k.startswith("child")} == {
            k: v for k, v in settled.items() if not k.startswith("child")
        }
        assert children(possessions()) == children(settled) == others + 4
        scene.assert_undisturbed()
        assert listening_addresses() <= {"127.0.0.1", "::1"}, "the engine's own sockets are for this machine only"
    # `running` has compared this process's possessions with those before the engine.
    assert sorted(os.listdir("/dev/shm")) == shared_memory


def children(owned: Iterable[str]) -> int:
    return sum(name.startswith("child") for name in owned)


def listening_addresses() -> set[str]:
    """Where this process and its workers accept connections."""
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    return {c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
