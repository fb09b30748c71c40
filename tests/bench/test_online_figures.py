"""The arithmetic of `ghostserve bench online` on histories written by hand, and what its seeds draw."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ghostserve.bench.online.client import Played, Stream
from ghostserve.bench.online.faults import Case, Hit, draw_hits, draw_timed, make_cases
from ghostserve.bench.online.figures import Slo, figure_of, is_good, per_token_seconds, spread
from ghostserve.bench.online.history import (
    History,
    Kill,
    Share,
    Step,
    busy_seconds,
    recovery_seconds,
    struck,
    useful_seconds,
)
from ghostserve.bench.online.load import Load
from ghostserve.bench.online.strategies import STRATEGIES, configure
from ghostserve.bench.online.striker import Striker
from ghostserve.cli.main import main
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.messages import Draw, SequencePart, StepPlan
from ghostserve.errors import ConfigError
from ghostserve.status import RecoveryRecord

RECORD = RecoveryRecord(
    epoch=2, reason="", lost_ranks=[1], seconds=0.0, bytes_rebuilt=7, replayed_steps=0, recomputed_requests=1
)


# ---- what is drawn


def test_percentages_become_faults_and_grow_into_each_other() -> None:
    outputs = list(np.random.default_rng(1).integers(2, 40, size=40))
    drawn = {percent: draw_hits(outputs, percent, ranks=4, seed=3) for percent in (0, 1, 5, 10, 15, 100)}
    assert [len(hits) for hits in drawn.values()] == [0, 1, 2, 4, 6, 40]
    for less, more in ((1, 5), (5, 10), (10, 15), (15, 100)):
        assert set(drawn[less]) < set(drawn[more])
    for hits in drawn.values():
        assert [hit.request for hit in hits] == sorted({hit.request for hit in hits})
        # There is a step after the one that is struck, for a strike that has to wait.
        assert all(0 <= hit.token <= max(0, outputs[hit.request] - 2) and 0 <= hit.rank < 4 for hit in hits)
    assert draw_hits(outputs, 15, ranks=4, seed=3) == drawn[15]
    assert draw_hits(outputs, 15, ranks=4, seed=4) != drawn[15]


@pytest.mark.parametrize("percent", [-1, 101, float("nan")])
def test_what_is_no_percentage(percent: float) -> None:
    with pytest.raises(ConfigError, match="percentages from 0 to 100"):
        draw_hits([4, 4], percent, ranks=2, seed=0)


def test_times_between_failures_have_their_mean() -> None:
    timed = draw_timed(3.0, 30_000.0, ranks=3, seed=5)
    gaps = np.diff([0.0, *(each.at_seconds for each in timed)])
    assert (gaps > 0).all()
    assert np.mean(gaps) == pytest.approx(3.0, rel=0.05)
    assert np.std(gaps) == pytest.approx(3.0, rel=0.1)  # as exponential gaps have, and even ones have not
    assert {each.rank for each in timed} == {0, 1, 2}
    assert timed[-1].at_seconds < 30_000.0
    # A shorter span cuts the same failures.
    assert draw_timed(3.0, 300.0, ranks=3, seed=5) == tuple(each for each in timed if each.at_seconds < 300.0)
    with pytest.raises(ConfigError, match="mtbf must be seconds above 0, not 0"):
        draw_timed(0.0, 1.0, ranks=2, seed=0)


def test_cases_have_their_names() -> None:
    cases = make_cases([5] * 20, percents=(0, 2.5, 15), mtbf=60.0, span=10.0, ranks=2, seed=0)
    assert [case.label for case in cases] == ["0 %", "2.5 %", "15 %", "MTBF 60 s"]
    assert [len(case.hits) for case in cases] == [0, 1, 3, 0]


def test_arrivals_scale_and_begin_at_nought(tmp_path) -> None:
    load = Load(requests=200, prompt=(100, 200), output=(10, 20), seed=2)
    plain = load.arrivals(2.0)
    assert plain[0].at_seconds == 0.0
    assert plain[-1].at_seconds == pytest.approx(100.0, rel=0.3)
    scaled = replace(load, scale_rate=4, scale_length=0.1).arrivals(2.0)
    assert [4 * a.at_seconds for a in scaled] == pytest.approx([a.at_seconds for a in plain])
    assert {a.prompt_tokens for a in scaled} <= set(range(10, 21))
    assert {a.output_tokens for a in scaled} == {1, 2}
    trace = tmp_path / "t.jsonl"
    rows = [{"timestamp": 1000 * i, "input_length": 100 * (i + 1), "output_length": 10} for i in range(5)]
    trace.write_text("\n".join(map(json.dumps, rows)))
    read = Load(requests=3, prompt=(1, 1), output=(1, 1), trace=trace, scale_rate=2, scale_length=0.5).arrivals(99.0)
    assert [(a.at_seconds, a.prompt_tokens, a.output_tokens) for a in read] == [(0, 50, 5), (0.5, 100, 5), (1, 150, 5)]


def test_every_strategy_is_one_of_the_engine() -> None:
    base = EngineConfig(model="m", tensor_parallel_size=2, parity="rs:1")
    kept = {name: configure(base, name) for name in STRATEGIES}
    assert {name: config.strategy.name for name, config in kept.items()} == {
        "none": "none",
        "replicate-host": "replicate-host",
        "replicate-ssd": "replicate-ssd",
        "parity-rebuild": "parity",
        "parity-hybrid": "parity",
    }
    assert (kept["parity-rebuild"].recovery, kept["parity-hybrid"].recovery) == ("rebuild", "hybrid")
    with pytest.raises(ConfigError, match="strategy 'luck' is unknown; allowed: none, replicate-host"):
        configure(base, "luck")


# ---- when it strikes


def plan(number: int, **counters: int | None) -> StepPlan:
    """A step of these requests: each draws its token of that number, None: a part of a prompt that draws nothing."""
    parts = tuple(
        SequencePart(name, (1,), 0, (0,), None if counter is None else Draw(0.0, 1.0, 0, 0, counter, None))
        for name, counter in counters.items()
    )
    return StepPlan(number, parts)


def test_a_hit_strikes_in_the_step_of_its_token_and_one_at_a_time() -> None:
    killed: list[int] = []
    striker = Striker({"a": Hit(0, 2, rank=1), "b": Hit(1, 0, rank=0)}, lambda rank: not killed.append(rank))
    for number, counters in enumerate(({"a": None, "c": 9}, {"a": 0}, {"a": 1, "b": None})):
        striker.step_sent(plan(number, **counters))
    assert killed == []
    striker.step_sent(plan(3, a=2, b=0))
    assert (killed, striker.pending) == ([1], 1)
    striker.step_sent(plan(4, a=3, b=1))  # the recovery is not over yet
    assert killed == [1]
    striker.resumed()
    striker.step_sent(plan(5, a=4, b=2))
    assert (killed, striker.pending) == ([1, 0], 0)
    striker.resumed()
    striker.step_sent(plan(6, a=5, b=3))
    assert killed == [1, 0]


def test_a_hit_without_a_victim_waits_for_the_next_step() -> None:
    alive = iter([False, True])
    striker = Striker({"a": Hit(0, 1, rank=0)}, lambda rank: next(alive))
    striker.step_sent(plan(1, a=1))
    assert striker.pending == 1
    striker.step_sent(plan(2, a=2))
    assert striker.pending == 0


# ---- what is computed


def test_percentiles_are_those_of_the_field() -> None:
    found = spread([float(v) for v in range(101)])
    assert (found.mean, found.p50, found.p99, found.most) == (50.0, 50.0, 99.0, 100.0)
    assert spread([4.0]).p99 == 4.0
    assert spread([0.0, 10.0]).p99 == pytest.approx(9.9)
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_a_client_that_waits_is_what_makes_time_count() -> None:
    assert busy_seconds([]) == 0.0
    assert busy_seconds([(0, 2), (1, 3), (1, 2), (5, 6)]) == 4.0
    assert busy_seconds([(5, 6), (0, 10)]) == 10.0


def step(sent: float, answered: float, *shares: tuple[str, int, int, bool]) -> Step:
    return Step(sent, answered, tuple(Share(*share) for share in shares))


PREFILL = (
    step(0, 1, ("a", 0, 100, False)),
    step(1, 2, ("a", 100, 200, True)),
    step(2, 3, ("a", 200, 201, True), ("b", 0, 99, False)),
)


def test_work_done_once_is_useful() -> None:
    assert useful_seconds(PREFILL) == 3.0
    # The time between steps is not.
    assert useful_seconds([step(0, 1, ("a", 0, 4, True)), step(9, 10, ("a", 4, 5, True))]) == 2.0


def test_work_done_again_is_not() -> None:
    again = (*PREFILL, step(5, 7, ("a", 0, 100, False), ("b", 0, 100, False)))
    # Of 200 tokens one is new: b's number 99.
    assert useful_seconds(again) == pytest.approx(3.0 + 2.0 / 200)
    further = (*again, step(7, 8, ("a", 100, 202, True)))
    assert useful_seconds(further) == pytest.approx(3.0 + 2.0 / 200 + 1.0 / 102)


def test_a_struck_request_has_recovered_when_it_is_beyond_where_it_was() -> None:
    history = History(
        steps=[
            *PREFILL,
            step(3, 4.05, ("a", 201, 202, True)),  # was done before the kill, and its answer came in
            step(6, 7, ("a", 0, 202, False)),  # a is not beyond yet
            step(7, 8, ("c", 0, 10, True)),  # nobody had seen c before
            step(8, 9, ("a", 202, 203, True), ("b", 0, 90, False)),
            step(9, 11, ("b", 90, 120, True)),
        ],
        kills=[Kill(4.0, 1)],
        lost=[4.1],
        resumed=[(5.5, RECORD)],
    )
    (kill,) = history.kills
    found = {one.request_id: (one.seconds, one.streaming) for one in struck(history, kill)}
    assert found == {"a": (5.0, True), "b": (7.0, False)}
    assert recovery_seconds(history, kill) == 7.0


def test_a_kill_that_strikes_nobody_is_over_when_the_group_serves() -> None:
    history = History(kills=[Kill(1.0, 0)], lost=[1.1], resumed=[(0.5, RECORD), (1.05, RECORD), (3.0, RECORD)])
    # The second is the end of an earlier recovery: this death had not been noticed yet.
    assert struck(history, history.kills[0]) == []
    assert recovery_seconds(history, history.kills[0]) == 2.0
    assert recovery_seconds(history, Kill(4.0, 0)) is None


def stream(name: str, arrived: float, *times: float) -> Stream:
    return Stream(name, arrived, list(range(len(times))), list(times))


def test_good_requests_meet_both_limits() -> None:
    slo = Slo(ttft=1.0, per_token=0.5)
    assert is_good(stream("a", 0, 1.0, 1.5, 2.0), slo)
    assert not is_good(stream("a", 0, 1.1, 1.2), slo)
    assert not is_good(stream("a", 0, 1.0, 1.6), slo)
    assert is_good(stream("a", 0, 0.9), slo)
    assert per_token_seconds(stream("a", 0, 0.9)) is None


def test_a_figure_is_all_of_these() -> None:
    history = History(
        steps=[
            step(0, 1, ("a", 0, 10, True)),
            step(3, 4, ("a", 0, 11, True)),
            step(4, 5, ("b", 0, 10, True)),
        ],
        kills=[Kill(1.5, 0)],
        lost=[1.6],
        resumed=[(2.5, RECORD)],
    )
    streams = (stream("a", 0.0, 1.0, 4.0), stream("b", 4.0, 5.0))
    found = figure_of("none", Case("5 %", hits=(Hit(0, 1, 0),)), Played(streams, history, void=2), Slo(1.0, 1.0))
    assert (found.kills, found.void, found.struck, found.recomputed, found.rebuilt_bytes) == (1, 2, 1, 1, 7)
    assert found.latencies == (4.0, 1.0)
    assert (found.ttft.most, found.per_token.most) == (1.0, 3.0)
    assert found.pause is not None
    assert (found.pause.mean, found.recovery) == (2.5, 2.5)
    assert (found.good, found.goodput, found.makespan) == (1, 0.2, 5.0)
    # Of 5 busy seconds: the first step, a's token number 10 of 11 in the second, the third.
    assert found.effective == pytest.approx((1 + 1 / 11 + 1) / 5)


# ---- the command line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--strategies", "luck"], "strategy 'luck' is unknown; allowed: none, replicate-host"),
        (["--strategies", ","], "at least one strategy"),
        (["--failures", "5,some"], "failures 'some' is no number"),
        (["--prompt", "9,3"], "prompt '9,3' is no length; allowed: short, medium, long or TOKENS or LEAST,MOST"),
        (["--output-tokens", "0"], "output_tokens '0' is no length"),
        (["--requests", "0"], "requests must be at least 1, not 0"),
        (["--rate", "-1"], "rate must be a number above 0 (requests a second), not -1"),
        (["--scale-length", "0"], "scale_length must be a number above 0, not 0"),
        (["--mtbf", "0"], "mtbf must be seconds above 0, not 0"),
        (["--failures", "120"], "percentages from 0 to 100, not 120"),
        (["--slo-ttft", "0"], "slo_ttft must be seconds above 0"),
        (["--trace", "/no/such/trace.csv"], "/no/such/trace.csv: No such file"),
        (["-tp", "1"], "at least 2 to lose a rank, not 1"),
        (["-tp", "2", "--shape", "huge"], "shape 'huge' is unknown; allowed: tiny"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = [] if "--shape" in arguments else ["--shape", "tiny"]
    assert main(["bench", "online", *shape, *arguments]) == 2
    assert said in capsys.readouterr().err
