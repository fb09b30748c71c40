"""The soak's parts without a server: what is drawn, what is counted, and what makes a run fail."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ghostserve.engine.messages import Draw, Sampled, SequencePart, StepPlan
from ghostserve.engine.record import Recorder, read_recording
from ghostserve.engine.serving import LoggedStep
from ghostserve.errors import ConfigError
from ghostserve.soak import possessions
from ghostserve.soak.embedded import computed_again
from ghostserve.soak.possessions import Possessions, descriptor_kind, named_memory
from ghostserve.soak.report import GROWTH, Found, judge, percentile, rss_growth
from ghostserve.soak.server import Comparison
from ghostserve.soak.settings import SoakSettings
from ghostserve.soak.streams import Ask, Stream, draw_asks, longest_wait
from ghostserve.soak.striker import Blow
from ghostserve.soak.strikes import MOMENTS, Draws, Strike
from ghostserve.status import EngineStatus, RankStatus, RecoveryRecord


def drawn(seed: int, count: int, *, ranks: int = 4, covered: int = 2, most: int = 9) -> list[Strike]:
    draws = Draws(seed, ranks=ranks, covered=covered)
    return [draws.next(most) for _ in range(count)]


# ---- strikes


def test_a_seed_decides_everything() -> None:
    assert drawn(7, 50) == drawn(7, 50)
    assert drawn(7, 50) != drawn(8, 50)


def test_every_kind_comes_and_none_goes_beyond_what_is_covered() -> None:
    strikes = drawn(1, 3000)
    kinds = Counter((strike.moment, strike.signal) for strike in strikes)
    assert set(kinds) == set(MOMENTS)
    for strike in strikes:
        assert len(set(strike.ranks)) <= 2
        assert all(0 <= rank < 4 for rank in strike.ranks)
        assert (len(strike.ranks) > 1) == (strike.moment in ("together", "recovery"))
    seconds = [strike.ranks for strike in strikes if strike.moment == "recovery"]
    assert any(a == b for a, b in seconds), "never a newcomer"
    assert any(a != b for a, b in seconds), "never another rank"


def test_with_one_parity_shard_only_a_newcomer_follows_the_first() -> None:
    strikes = drawn(1, 2000, covered=1)
    assert not [strike for strike in strikes if strike.moment == "together"]
    assert {len(set(strike.ranks)) for strike in strikes} == {1}
    assert [strike for strike in strikes if strike.moment == "recovery"]


def test_never_more_than_are_left() -> None:
    assert {len(strike.ranks) for strike in drawn(3, 500, most=1)} == {1}


# ---- streams


@pytest.mark.parametrize("long", [False, True])
def test_asks_fit_the_model(long: bool) -> None:
    asks = [ask for seed in range(50) for ask in draw_asks(seed, 5, context=256, long=long, seeded=True)]
    assert all(len(ask.prompt) + ask.max_tokens <= 256 for ask in asks)
    assert (max(len(ask.prompt) for ask in asks) > 100) == long
    assert all((ask.seed is None) == (ask.temperature == 0) for ask in asks)
    assert not any(ask.seed for ask in draw_asks(1, 20, context=256, long=long, seeded=False))


def stream(*times: float, asked: float = 0.0, **more: object) -> Stream:
    ask = Ask(prompt=(5, 6), max_tokens=len(times), temperature=0.0, seed=None, after=0.0)
    tokens = [10 + index for index in range(len(times))]
    filled = {"request_id": "cmpl-a", "token_ids": tokens, "logprobs": [-0.5] * len(times), "over": True} | more
    return Stream(ask, asked=asked, times=list(times), **filled)


def test_the_wait_that_a_strike_falls_into() -> None:
    streams = [stream(1.0, 1.1, 3.0, 3.1), stream(1.0, 1.2, 2.5, 9.0)]
    assert longest_wait(streams, 2.0, 2.0) == pytest.approx(1.9)
    assert longest_wait(streams, 2.0, 2.9) == pytest.approx(6.5), "a second strike's wait counts too"
    assert longest_wait(streams, 0.5, 0.5) == pytest.approx(1.0), "a prompt that is being read"
    assert longest_wait(streams, 9.5, 9.5) is None
    assert longest_wait([stream(1.0, asked=None)], 0.5, 0.5) is None


# ---- figures


def test_percentiles_are_of_the_values() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, part) for part in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([3.0], 0.5) == 3.0
    assert percentile([2.0, 1.0], 0.99) == 2.0


def test_growth_is_between_quarters() -> None:
    level = [100] * 5 + [500] * 15
    assert rss_growth(level) == 0
    assert rss_growth([10 * number for number in range(100)]) == 500
    assert rss_growth([1, 2, 3]) == 0


def test_what_there_is_more_of() -> None:
    before = Possessions({"processes": 5, "descriptor socket:[N]": 9}, 0)
    assert Possessions({"processes": 5, "descriptor socket:[N]": 8}, 99).more_than(before) == []
    more = Possessions({"processes": 6, "descriptor socket:[N]": 9, "descriptor pipe:[N]": 1}, 0).more_than(before)
    assert more == ["descriptor pipe:[N]: 1, before 0", "processes: 6, before 5"]


def test_shared_memory_that_another_program_has_mapped_is_not_the_servers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a folder that stands for /dev/shm: tests beside this one look there for what is left."""
    monkeypatch.setattr(possessions, "_SHARED", tmp_path)
    for name in ("ours", "theirs"):
        (tmp_path / name).write_bytes(bytes(64))
    code = f"import mmap; f = open({str(tmp_path / 'theirs')!r}, 'r+'); m = mmap.mmap(f.fileno(), 64)"
    other = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert other.stdout is not None
        other.stdout.readline()
        assert named_memory() == {"ours", "theirs"}
        found = named_memory(apart_from=os.getsid(0))
        assert found == {"ours"}, "nobody has it, so it was left behind"
        assert "theirs" in named_memory(apart_from=other.pid), "of that session it is"
    finally:
        other.communicate()


def test_descriptors_are_told_apart_by_kind() -> None:
    assert descriptor_kind("socket:[12345]") == descriptor_kind("socket:[6]") == "socket:[N]"
    # vLLM draws new names for its message queues in each epoch.
    assert descriptor_kind("/dev/shm/psm_1b2c (deleted)") == descriptor_kind("/dev/shm/psm_cd4a") == "/dev/shm/*"
    assert descriptor_kind("/memfd:ghostserve-kv-1 (deleted)") != descriptor_kind("/memfd:ghostserve-parity (deleted)")


def part(request: str, start: int, count: int) -> SequencePart:
    return SequencePart(request, (7,) * count, start, (0,), None)


def test_tokens_that_were_computed_again() -> None:
    once = [LoggedStep(StepPlan(1, (part("a", 0, 8), part("b", 0, 4)))), LoggedStep(StepPlan(2, (part("a", 8, 1),)))]
    assert computed_again(once) == 0
    assert computed_again([*once, LoggedStep(StepPlan(3, (part("a", 0, 9), part("b", 4, 1))))]) == 9


# ---- the recording


def test_a_recording_comes_back_as_it_was(tmp_path: Path) -> None:
    draw = Draw(0.8, 0.9, 0, 11, 3, 2)
    entries = [
        LoggedStep(StepPlan(4, (part("a", 0, 3),)), {}),
        LoggedStep(
            StepPlan(5, (SequencePart("a", (9,), 3, (1, 2), draw),)),
            {"a": Sampled("a", 12, -0.1 - 0.2, ((12, -0.1 - 0.2), (3, -7.0)))},
        ),
    ]
    recorder = Recorder(tmp_path / "record")
    for entry in entries:
        recorder.observe("answered", {"entry": entry})
        recorder.observe("step", {"plan": entry.plan, "replay": False})
    recorder.close()
    assert list(read_recording(tmp_path / "record")) == entries
    assert (tmp_path / "record").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="does not exist yet"):
        Recorder(tmp_path / "record")
    whole = (tmp_path / "record").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-1])
    with pytest.raises(ConfigError, match="ends within a step"):
        list(read_recording(tmp_path / "cut"))
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(ConfigError, match="is no recorded schedule"):
        list(read_recording(tmp_path / "other"))


# ---- the verdict

SETTINGS = SoakSettings(kills=2)
DELIVERED: dict[str, list[tuple[int, float | None]]] = {"cmpl-a": [(10, -0.5), (11, -0.5)]}
GOOD = Comparison(tokens=2, differences=0, first=None, delivered=DELIVERED, computed_again=0)


def good() -> Found:
    record = RecoveryRecord(
        epoch=2, reason="", lost_ranks=[1], seconds=0.5, bytes_rebuilt=9, replayed_steps=1, recomputed_requests=0
    )
    status = EngineStatus(
        state="serving", epoch=2, step=9, watermark=9, ranks=[RankStatus(0, 1, "up")], recoveries=[record]
    )
    blows = [Blow("kill", "decode", 1.0), Blow("stop", "idle", 2.0)]
    return Found(streams=[stream(1.0, 2.0)], blows=blows, pauses=[1.0], status=status)


def test_a_good_run_passes() -> None:
    report = judge(SETTINGS, good(), GOOD)
    assert report.passed
    assert (report.kills, report.recoveries, report.streams, report.tokens) == (2, 1, 1, 2)
    assert report.kills_by_kind == {"SIGKILL decode": 1, "SIGSTOP idle": 1}
    assert report.pauses is not None
    assert report.pauses.longest == 1.0


def fewer_kills(found: Found) -> None:
    found.blows.pop()


def failed_stream(found: Found) -> None:
    found.streams[0].error = "ended after 1 of 2 tokens"


def other_token(found: Found) -> None:
    found.streams[0].token_ids[1] = 12


def other_logprob(found: Found) -> None:
    found.streams[0].logprobs[0] = -0.5000000000000001


def twice(found: Found) -> None:
    found.streams[0].token_ids.append(11)
    found.streams[0].logprobs.append(-0.5)


def not_recorded(found: Found) -> None:
    found.streams[0].request_id = "cmpl-b"


def mismatch(found: Found) -> None:
    assert found.status is not None
    found.status = msgspec.structs.replace(found.status, counters={"replay_mismatches": 1.0})


def false_alarm(found: Found) -> None:
    assert found.status is not None
    found.status = msgspec.structs.replace(found.status, counters={"scrub_corrupt_slots": 3.0})


def leak(found: Found) -> None:
    found.leaks.append("processes: 6, before 5")


def growth(found: Found) -> None:
    found.rss = [0, 0, 0, 0, 0, 0, GROWTH + 1, GROWTH + 1]


def broken(found: Found) -> None:
    found.broken = "the server ended with -9"


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (fewer_kills, "1 of 2 kills"),
        (failed_stream, "1 streams failed, the first: cmpl-a: ended after 1 of 2 tokens"),
        (other_token, "1 clients received something else"),
        (other_logprob, "1 clients received something else"),
        (twice, "1 clients received something else"),
        (not_recorded, "1 clients received something else"),
        (mismatch, "1 replayed steps drew something else"),
        (false_alarm, "the scrubber found 3 damaged slots, and no bit was flipped"),
        (leak, "leak: processes: 6, before 5"),
        (growth, "resident memory grew by"),
        (broken, "the run broke off: the server ended with -9"),
    ],
)
def test_what_fails_a_run(harm: Callable[[Found], None], problem: str) -> None:
    found = good()
    harm(found)
    report = judge(SETTINGS, found, GOOD)
    assert not report.passed
    assert len(report.problems) == 1
    assert problem in report.problems[0]


def test_a_difference_fails_a_run_and_so_does_nothing_to_compare() -> None:
    differs = Comparison(2, 1, "request cmpl-a-0, step 5: token 11", DELIVERED, 0)
    (problem,) = judge(SETTINGS, good(), differs).problems
    assert problem == "1 differences from the undisturbed rerun, first: request cmpl-a-0, step 5: token 11"
    assert judge(SETTINGS, good(), None).problems == ["nothing was compared"]
    assert "no token was compared" in judge(SETTINGS, good(), Comparison(0, 0, None, {}, 0)).problems


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kills": 0}, "kills must be at least 1, not 0"),
        ({"clients": 0}, "clients must be at least 1, not 0"),
        ({"tensor_parallel_size": 1}, "tensor_parallel_size must be at least 2, not 1"),
        ({"standbys": 0}, "standbys must be at least 1, not 0"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"engine": "sglang"}, "engine 'sglang' is unknown; allowed: embedded, vllm"),
        ({"sabotage": "all"}, "sabotage 'all' is unknown; allowed: skip-rebuild"),
        ({"parity": "none"}, "parity is 'none': a soak needs a code"),
        ({"parity": "raid"}, "no code 'raid'"),
        ({"step_deadline": 0.0}, "step_deadline must be a positive number of seconds, not 0"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SoakSettings(**settings)
