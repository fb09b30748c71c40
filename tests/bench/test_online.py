"""`ghostserve bench online` for real: few requests to a tiny model, kills meanwhile, tokens compared; and its twin."""

import json
from pathlib import Path

import msgspec
import pytest

from ghostserve.bench.online.bench import Plan, bench_online, sized
from ghostserve.bench.online.check import check_delivered
from ghostserve.bench.online.client import Stream
from ghostserve.bench.online.load import Load
from ghostserve.bench.shapes import SHAPES, make_checkpoint
from ghostserve.bench.workload import bench_config
from ghostserve.cli.main import main
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.messages import Sampled, StepPlan
from ghostserve.engine.modelspec import inspect_checkpoint
from ghostserve.engine.serving import LoggedStep
from ghostserve.errors import ConfigError, GhostServeError
from ghostserve.traces import Arrival


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    folder = tmp_path_factory.mktemp("shape")
    make_checkpoint(folder, SHAPES["tiny"])
    return bench_config(str(folder), 2, "rs:1", max_num_seqs=4)


def test_strategies_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "online.json"
    arguments = ["--quick", "--shape", "tiny", "-tp", "2", "--strategies", "none,parity-hybrid", "--failures", "0,20"]
    code = main(["bench", "online", *arguments, "--mtbf", "1", "--output", str(out), "--plot", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 0, said
    found = json.loads(out.read_text())["online"]
    assert found["refused"] == found["failed"] == {}
    figures = {(f["strategy"], f["case"]): f for f in found["figures"]}
    assert len(figures) == 6
    # Two requests of 8 are hit, in the same way under both strategies.
    for strategy in ("none", "parity-hybrid"):
        assert figures[strategy, "0 %"]["kills"] == 0
        assert figures[strategy, "0 %"]["recovery"] is None
        hit = figures[strategy, "20 %"]
        assert hit["kills"] == 2
        assert hit["struck"] >= 1
        assert 0 < hit["effective"] < 1
        assert hit["recovery"] > 0
        assert hit["latency"]["p50"] <= hit["latency"]["p99"] <= hit["latency"]["most"] == max(hit["latencies"])
    assert figures["none", "20 %"]["recomputed"] > 0
    assert figures["none", "20 %"]["rebuilt_bytes"] == 0
    assert figures["parity-hybrid", "20 %"]["recomputed"] == 0
    tokens = sum(output for _, _, output in found["arrivals"])
    assert found["compared_tokens"] > 2 * 3 * tokens  # two strategies, three cases, and what went before
    assert "times better than none" in said
    picture = (tmp_path / "online.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000


def test_the_cache_holds_what_runs_together(config: EngineConfig) -> None:
    """However small the one that was configured."""
    small = msgspec.structs.replace(config, kv_cache_memory=1 << 20)
    fitted = sized(small, [Arrival(0.0, 9000, 100), Arrival(1.0, 20, 8)])
    assert fitted.max_model_len == 9100
    spec = inspect_checkpoint(fitted)
    assert spec.num_blocks * spec.block_size >= 2 * 9100
    with pytest.raises(ConfigError, match="needs 569"):
        inspect_checkpoint(msgspec.structs.replace(fitted, kv_cache_memory=1 << 20))


def test_a_wrong_token_stops_the_benchmark(config: EngineConfig) -> None:
    """The twin: the newcomer keeps its poisoned KV, as if the rebuild were broken.

    A strategy that can't run here is told, and left out.
    """
    load = Load(requests=4, prompt=(100, 200), output=(8, 12), rate=4.0)
    plan = Plan(strategies=("replicate-ssd", "parity-rebuild"), percents=(25,), sabotage=True)
    config = msgspec.structs.replace(config, protect_folder="/no/such/folder")
    said: list[str] = []
    with pytest.raises(GhostServeError, match=r"parity-rebuild: \d+ of \d+ tokens differ from the undisturbed run"):
        bench_online(config, load, plan, progress=said.append)
    assert any(line.startswith("replicate-ssd is refused: ") and "/no/such/folder" in line for line in said)


def test_nothing_that_can_run_is_an_error(config: EngineConfig) -> None:
    wrong = msgspec.structs.replace(config, parity="rs:9000")
    load, plan = Load(requests=1, prompt=(10, 10), output=(4, 4)), Plan(strategies=("parity-rebuild",), percents=(0,))
    with pytest.raises(ConfigError, match=r"no strategy can run here: .*9000"):
        bench_online(wrong, load, plan, progress=lambda text: None)


def test_a_stream_that_is_not_what_was_recorded_is_found() -> None:
    def logged(token: int) -> LoggedStep:
        return LoggedStep(StepPlan(1, ()), {"r": Sampled("r", token, None, ())})

    recording = [logged(5), logged(6)]
    check_delivered("none", [Stream("r", 0.0, [5, 6])], [2], recording)
    for tokens, wanted in (([6, 5], 2), ([5], 2), ([5, 6, 6], 3), ([5, 6], 3)):
        with pytest.raises(GhostServeError, match=rf"r was sent {len(tokens)} tokens of {wanted}"):
            check_delivered("none", [Stream("r", 0.0, tokens)], [wanted], recording)
