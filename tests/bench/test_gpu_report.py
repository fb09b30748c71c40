"""From figures to tables, JSON and pictures; and what happens when a benchmark fails."""

import json

import pytest
import torch
from rich.console import Console

from ghostserve.bench.gpu.beside import BesideFigure
from ghostserve.bench.gpu.checkpoint import CheckpointFigure
from ghostserve.bench.gpu.contexts import ContextFigure
from ghostserve.bench.gpu.decode_flush import DecodeFlushFigure
from ghostserve.bench.gpu.kernels import KernelFigure
from ghostserve.bench.gpu.rebuild import RebuildFigure
from ghostserve.bench.gpu.shadow import OverheadFigure
from ghostserve.bench.gpu.suite import GPU_BENCHMARKS, Outcome, as_json, run_suite
from ghostserve.bench.gpu.tables import tables
from ghostserve.bench.gpu.timing import Spread
from ghostserve.bench.plots import draw
from ghostserve.errors import ConfigError

CPU = torch.device("cpu")


def spread(value):
    return Spread(value, value * 0.9, value * 1.1, 5)


def kernel(*, checksums, programs=None, seconds=1e-3):
    return KernelFigure("cache", "rs 8:2", "encode", checksums, programs, 2_000_000_000, spread(seconds), 2500.0, 1.5)


FIGURES = {
    "kernels": {
        "kernels": [
            kernel(checksums=True),
            kernel(checksums=False, seconds=0.8e-3),
            kernel(checksums=True, programs=8),
        ],
        "decode_flush": [DecodeFlushFigure("cache", "xor 8:1", 64, spread(2e-5), None, "no graph here")],
    },
    "checkpoint": {
        "checkpoint": [
            CheckpointFigure(
                "cache", "rs 8:2", "ring", 2048, 8, 2, 40960, spread(3e-3), None, spread(12e-3), spread(15e-3)
            )
        ],
        "checkpoint_beside_matmuls": [
            BesideFigure("rs 8:2", "ring", spread(0.1), spread(0.11), 20.0, spread(3e-3), spread(12e-3))
        ],
    },
    "rebuild": {
        "rebuild": [RebuildFigure("cache", "rs 8:2", (3, 6), "in order", 9, 10**9, 10**9, spread(0.02), spread(0.019))]
    },
    "overhead": {
        "overhead": [
            OverheadFigure("model", "decode", "rs:2", spread(1.0), spread(1.005), spread(1.005), spread(0.01), 7)
        ]
    },
    "contexts": {
        "contexts": [
            ContextFigure("model", code, tokens, 8, k, 40960, *(spread(s * tokens) for s in seconds), 0.0)
            for tokens in (4096, 16384)
            for code, k, seconds in (
                ("xor 8:1", 1, (1e-6, 7.1e-6, 9e-7, 8e-7, 3e-5)),
                ("rs 8:2", 2, (2e-6, 7.1e-6, 9e-7, 8e-7, 3e-5)),
            )
        ]
    },
}


def test_what_is_derived():
    figures = FIGURES["kernels"]["kernels"]
    assert figures[0].gbps == pytest.approx(2000)
    assert figures[0].of_ceiling == pytest.approx(0.8)
    checkpoint, beside = FIGURES["checkpoint"]["checkpoint"][0], FIGURES["checkpoint"]["checkpoint_beside_matmuls"][0]
    assert (checkpoint.faster, checkpoint.limit, checkpoint.aim) == (pytest.approx(4), 4, 3.6)
    assert checkpoint.faster_than_replicate == pytest.approx(5)
    assert checkpoint.gbps == pytest.approx(2048 * 40960 * 2 / 3e-3 / 1e9)
    assert checkpoint.copy_gbps == pytest.approx(2048 * 40960 * 8 / 12e-3 / 1e9)
    assert beside.slow_down == pytest.approx(1.1)
    assert beside.lost_seconds == pytest.approx(0.01 / 20)
    assert FIGURES["rebuild"]["rebuild"][0].of_ceiling == pytest.approx(0.95)
    contexts = FIGURES["contexts"]["contexts"][0]
    assert (contexts.faster, contexts.limit) == (pytest.approx(7.1), 8)
    assert (contexts.cache_bytes, contexts.parity_bytes) == (4096 * 8 * 40960, 4096 * 40960)
    assert contexts.against_recompute == pytest.approx(100 / 3)


def test_tables_show_figure_and_ceiling():
    console = Console(width=300, record=True, quiet=True)
    with console.capture() as captured:
        for name, figures in FIGURES.items():
            for table in tables(Outcome(name, 1.0, figures)):
                console.quiet = False
                console.print(table)
    shown = captured.get()
    for text in (
        "0.800",
        "+25.0%",
        "2500 GB/s",
        "no graph here",
        "4.00x",
        "3.6x",
        "1.100",
        "0.950",
        "1.0050",
        "7.10x",
        "33.3x",
    ):
        assert text in shown, text


def test_every_benchmark_has_a_table():
    assert list(FIGURES) == list(GPU_BENCHMARKS)


def test_one_that_fails_does_not_stop_the_others():
    def broken(quick, device, say):
        raise ConfigError("out of luck")

    def fine(quick, device, say):
        say("at work")
        return {"overhead": FIGURES["overhead"]["overhead"]}

    said = []
    runners = {"broken": broken, "fine": fine}
    outcomes = list(run_suite(["broken", "fine"], quick=True, device=CPU, say=said.append, runners=runners))
    assert said == ["fine: at work"]
    assert "ConfigError: out of luck" in as_json(outcomes[0])["error"]
    assert "in broken" in outcomes[0].error
    assert outcomes[1].error is None
    assert as_json(outcomes[1])["overhead"][0]["ratio"]["median"] == 1.005
    with pytest.raises(ConfigError, match="'luck' is unknown; allowed: broken, fine"):
        next(run_suite(["luck"], quick=True, device=CPU, say=said.append, runners=runners))


def test_figures_survive_json():
    results = json.loads(json.dumps({n: as_json(Outcome(n, 1.0, f)) for n, f in FIGURES.items()}))
    assert results["kernels"]["kernels"][0]["of_ceiling"] == pytest.approx(0.8)
    assert results["checkpoint"]["checkpoint"][0]["copy_all"]["median"] == 12e-3


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    results = {n: as_json(Outcome(n, 1.0, f)) for n, f in FIGURES.items()}
    written = draw(json.loads(json.dumps(results)), tmp_path / "plots")
    names = ["kernels", "checkpoint", "checkpoint-beside-matmuls", "rebuild", "overhead", "contexts"]
    assert [path.name for path in written] == [f"{name}.png" for name in names]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    # What failed has no picture.
    assert draw({"rebuild": {"seconds": 1.0, "error": "..."}, "machine": {}}, tmp_path) == []
