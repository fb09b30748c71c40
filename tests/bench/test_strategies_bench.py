"""Ways side by side on a tiny model: they run, a wrong byte stops them; figures become tables, JSON and pictures."""

import json
import threading
from dataclasses import asdict, replace

import msgspec
import pytest
from rich.console import Console

from ghostserve.bench.hybrid import POLICIES, RefillFigure, bench_hybrid
from ghostserve.bench.paper import compare
from ghostserve.bench.shapes import shape_checkpoint
from ghostserve.bench.spread import Spread
from ghostserve.bench.strategies.lane import Lane
from ghostserve.bench.strategies.measure import ContextFigure, KeptFigure, Load, StrategyFigures, bench_strategies
from ghostserve.bench.strategies.sensitivity import AXES, SensitivityFigure, require_axes
from ghostserve.bench.strategies.watch import Watch
from ghostserve.bench.strategies.ways import Way, ways_of
from ghostserve.bench.workload import bench_config
from ghostserve.checkpoint import FlushTask
from ghostserve.cli.bench_strategies import hybrid_table, sensitivity_table, strategy_tables
from ghostserve.engine.messages import StepPlan
from ghostserve.engine.rerun import Undisturbed
from ghostserve.errors import ConfigError, GhostServeError
from ghostserve.parity.ranges import SlotRange

PARITY = Way("rs:1, rebuild", "parity", "rs:1")


def quietly(text):
    assert text


@pytest.fixture(scope="module")
def config():
    with shape_checkpoint("tiny", quietly) as folder:
        yield bench_config(str(folder), 2, "none", kv_cache_memory=8 << 20, max_model_len=256)


def test_ways_side_by_side(config):
    load = Load(contexts=(64,), rounds=1, warm_ups=0, streams=2, prompt=8, tokens=6)
    found = bench_strategies(config, (PARITY,), load, quietly)
    assert [k.way for k in found.kept] == ["none", "rs:1, rebuild"]
    none, parity = found.kept
    assert (none.host_bytes, none.disk_bytes, none.decode_ratio.median) == (0, 0, 1)
    assert parity.host_share == pytest.approx(1 / 2, abs=0.01)
    assert [(f.context, f.way) for f in found.contexts] == [
        (64, "none"),
        (64, "rs:1, rebuild"),
    ]
    for f in found.contexts:
        assert f.pause.low >= f.restore.low > 0
        assert f.prefill.median > 0
        assert (f.checkpoint.median > 0) == (f.way != "none")


def test_a_rebuild_that_is_left_out_is_seen(config):
    with Lane(PARITY, config, skip_rebuild=True) as lane:
        lane.kill(64)
        lane.kill(48)
        spec, placement = lane.engine.spec, lane.engine.placement
    with (
        Undisturbed(spec, placement) as oracle,
        pytest.raises(GhostServeError, match=r"rs:1, rebuild: .* tokens differ from the undisturbed run"),
    ):
        lane.verify(oracle)


def test_a_kill_strikes_all_sequences(config):
    """Also where the prompts are read one after the other, in small steps, while the first streams decode."""
    with Lane(PARITY, msgspec.structs.replace(config, max_num_batched_tokens=32)) as lane:
        killed = lane.kill(64, sequences=5)
    assert 0 < killed.restore < killed.pause


def test_ways():
    assert [w.name for w in ways_of("rs:2")] == [
        "none",
        "replicate-host",
        "replicate-ssd",
        "rs:2, rebuild",
        "rs:2, hybrid",
    ]
    with pytest.raises(ConfigError, match="parity 'none' is one of the ways already"):
        ways_of("none")


def step(number, *tasks):
    return StepPlan(number, (), tuple(FlushTask(task, number, 0, (SlotRange(0, 1, 0, 0, 4),)) for task in tasks))


def test_a_checkpoint_takes_as_long_as_the_slowest_flush_of_each_step():
    watch = Watch()
    for plan in (step(0, 0), step(1, 1, 2)):
        watch("step", {"plan": plan, "replay": False})
    watch("committed", {"tasks": (0,), "seconds": 0.5})
    watch("committed", {"tasks": (1,), "seconds": 0.25})
    with pytest.raises(GhostServeError, match=r"flush tasks \[2\] were not committed within 0 s"):
        watch.checkpoint_seconds(timeout=0.01)
    threading.Timer(0.1, lambda: watch("committed", {"tasks": (2,), "seconds": 2.0})).start()
    assert watch.checkpoint_seconds() == 2.5
    watch.clear()
    assert watch.checkpoint_seconds() == 0


def test_a_replayed_step_is_no_checkpoint():
    watch = Watch()
    watch("step", {"plan": step(0, 7), "replay": True})
    assert watch.checkpoint_seconds(timeout=0.01) == 0
    with pytest.raises(GhostServeError, match="no recovery followed"):
        watch.resumed_after(0.0)


def test_axes_change_what_they_say():
    for axis, points in AXES.items():
        assert len({point.value for point in points}) == len(points)
        assert len({(p.parity, p.sequences, json.dumps(p.settings)) for p in points}) == len(points), axis


def test_an_unknown_axis():
    with pytest.raises(ConfigError, match="axis 'luck' is unknown; allowed: code, ranks, sequences, flush, chunk"):
        require_axes(("ranks", "luck"))


def spread(value):
    return Spread(value, value * 0.9, value * 1.1, 3)


def context(way, tokens, *, checkpoint, restore):
    return ContextFigure(
        way, tokens, 1, spread(1.0), spread(1.02), spread(checkpoint), spread(0.8), spread(restore), None, 1, 0
    )


def kept(way, host):
    return KeptFigure(way, 1000, host, 0, spread(20.0), spread(0.98))


def results():
    ways = (("none", 0, 0.0, 2.0), ("replicate-host", 1000, 0.06, 0.02), ("rs:2, rebuild", 250, 0.02, 0.025))
    points = (("none", 0, 0.0, 1.0), ("replicate-host", 1000, 0.02, 0.01), ("rs:1", 500, 0.025, 0.01))
    return {
        "strategies": {
            "kept": [asdict(kept(name, host)) for name, host, _, _ in ways],
            "contexts": [
                asdict(context(name, tokens, checkpoint=saved * tokens, restore=back * tokens))
                for tokens in (256, 1024)
                for name, _, saved, back in ways
            ],
        },
        "sensitivity": {
            "sensitivity": [
                asdict(
                    SensitivityFigure(
                        "ranks", str(n), n, kept(name, host), context(name, 64, checkpoint=saved, restore=back)
                    )
                )
                for n in (2, 4)
                for name, host, saved, back in points
            ]
        },
        "online": {
            "cases": [{"label": "0 %", "percent": 0}, {"label": "15 %", "percent": 15.0}],
            "figures": [
                {"strategy": name, "case": case, "latency": {"p50": p50, "p99": p99}}
                for name, case, p50, p99 in (
                    ("none", "15 %", 4.0, 6.0),
                    ("parity-hybrid", "15 %", 2.0, 12.0),
                    ("none", "0 %", 1.0, 1.0),
                    ("parity-hybrid", "0 %", 1.0, 1.0),
                )
            ],
        },
        "hybrid": {
            "refills": [
                {
                    "policy": policy,
                    "context": tokens,
                    "seconds": {"median": s * tokens},
                    "of_measured": {"median": 1.1},
                    "recomputed_slots": recomputed,
                }
                for tokens in (256, 1024)
                for policy, s, recomputed in (("rebuild", 1e-3, 0), ("recompute", 2e-3, 9), ("hybrid", 8e-4, 4))
            ]
        },
    }


def test_the_paper_beside_what_was_measured():
    rows = {row.claim: row for row in compare(results(), ranks=8, parity="rs:2")}
    assert rows["checkpoint against copying the cache to the host, 8:2"].here == "3.00x at 1,024 tokens"
    assert rows["recovery"].here == "80.00x against recomputing, 0.80x against copies, at 1,024 tokens"
    assert rows["host memory, 8:2"].here == "-75% against copies"
    assert rows["TP 2"].here == "checkpoint 0.80x, host memory 0.50 of the cache"
    assert rows["hybrid recovery against pure rebuild"].here.startswith("+20.0% at best")
    assert rows["decode slows by"].here.startswith("+2.0%")
    assert rows["host memory, 8:2"].differs.startswith("rs:2 over 8 ranks")
    assert rows["15 % of requests hit, P50 against recomputing"].here == "2.00x (parity-hybrid)"
    assert rows["15 % of requests hit, P99 against recomputing"].here == "0.50x (parity-hybrid)"


def test_figures_of_a_gpu_come_first():
    context = {
        "shape": "Llama-3-70B TP 8", "code": "rs 8:2", "tokens": 65536, "parity_shards": 2, "cache_bytes": 800,
        "parity_bytes": 200, "faster": 3.5, "against_recompute": 60.0, "rebuild": {"median": 0.055},
        "copy_back": {"median": 0.05},
    }  # fmt: skip
    other = context | {"parity_shards": 1, "faster": 7.0}
    shorter = context | {"cache_bytes": 80, "faster": 2.0}
    overhead = [{"work": "prefill of 65,536", "parity": "rs:2", "ratio": {"median": ratio}} for ratio in (1.002, 1.01)]
    run = results() | {"contexts": {"contexts": [other, context, shorter]}, "overhead": {"overhead": overhead}}
    rows = {row.claim: row for row in compare(run, ranks=3, parity="rs:1")}
    checkpoint = rows["checkpoint against copying the cache to the host, 8:2"]
    assert checkpoint.here == "3.50x (rs 8:2, Llama-3-70B TP 8, 65,536 tokens)"
    assert checkpoint.differs == "one GPU plays all ranks, over one link"
    assert rows["recovery"].here == "60.0x against recomputing, 0.91x against copies"
    assert rows["prefill of 1M tokens slows by"].here == "+0.2% to +1.0%"
    assert rows["decode slows by"].differs.startswith("rs:1; the ranks share")


def test_a_hybrid_that_recomputes_nothing_gains_nothing():
    run = results()
    for f in run["hybrid"]["refills"]:
        f["recomputed_slots"] = 0
    rows = {row.claim: row.here for row in compare(run, ranks=3, parity="rs:1")}
    assert rows["hybrid recovery against pure rebuild"] == "it chose the pure rebuild each time"


def test_nothing_is_claimed_of_what_was_not_run():
    assert {row.here for row in compare({"machine": {}}, ranks=3, parity="rs:1")} == {"not run"}


def test_tables_show_every_way():
    console = Console(width=250)
    none, parity = (context(way, 1024, checkpoint=0.05, restore=0.02) for way in ("none", "rs:2, hybrid"))
    found = StrategyFigures([kept("none", 0), kept("rs:2, hybrid", 250)], [none, replace(parity, predicted=0.019)])
    points = [SensitivityFigure("ranks", "2", 2, kept("rs:1", 500), parity)]
    refills = [
        RefillFigure(policy, 512, spread(seconds), spread(1.05), 3, 0, ())
        for policy, seconds in (("rebuild", 0.1), ("recompute", 0.4), ("hybrid", 0.08))
    ]
    with console.capture() as captured:
        for table in (*strategy_tables(found, "here"), sensitivity_table(points, "here"), hybrid_table(refills, "x")):
            console.print(table)
    shown = captured.get()
    for text in ("1,024", "50.0 (45.0..55.0)", "0.250", "19.0", "0.500", "1.050 (0.95..1.16)", "0.80"):
        assert text in shown, text


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    from ghostserve.bench.plots import draw

    written = draw(json.loads(json.dumps(results())), tmp_path)
    assert [path.name for path in written] == ["strategies.png", "sensitivity.png", "hybrid.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 200_000 for path in written)


@pytest.mark.slow
def test_hybrid_and_its_two_parts(config):
    said: list[str] = []
    figures = bench_hybrid(config, "rs:1", (64,), rounds=3, progress=said.append, warm=False)
    assert sum("starting" in text for text in said) == 2 * len(POLICIES), "engines are started anew after two rounds"
    assert [(f.policy, f.context) for f in figures] == [(policy, 64) for policy in POLICIES]
    by_policy = {f.policy: f for f in figures}
    assert by_policy["rebuild"].recomputed_slots == 0
    assert by_policy["recompute"].recomputed_slots + by_policy["recompute"].rejected_slots >= 64
    for f in figures:
        assert f.seconds.low > 0
        assert f.seconds.samples == 3
        assert f.plan
