"""What a soak found, and whether that is what was promised."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

import msgspec

from ghostserve.soak.server import Comparison
from ghostserve.soak.settings import SoakSettings
from ghostserve.soak.streams import Stream
from ghostserve.soak.striker import Blow
from ghostserve.status import EngineStatus

__all__ = ["GROWTH", "Found", "Pauses", "Report", "judge", "percentile", "rss_growth"]

GROWTH = 32 << 20
"""Bytes by which the leaders' resident memory may differ between two quarters of a run: what allocators keep varies."""


class Pauses(msgspec.Struct, frozen=True):
    """Seconds that a client waited at most for its next token, over the strikes that somebody was waiting in."""

    count: int
    p50: float
    p99: float
    longest: float


class Found(msgspec.Struct, kw_only=True):
    """What the campaign saw. `broken`: why it ended early; `rss`: bytes, after each strike's streams."""

    streams: list[Stream] = []
    blows: list[Blow] = []
    pauses: list[float] = []
    rss: list[int] = []
    leaks: list[str] = []
    status: EngineStatus | None = None
    broken: str | None = None
    seconds: float = 0.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Counts unless said otherwise. `passed` says whether all of it is as promised; `problems` why not."""

    kills: int
    kills_by_kind: dict[str, int]
    recoveries: int
    pauses: Pauses | None
    recomputed_requests: int
    recomputed_slots: int
    """Of lost KV, by all ranks, with the recorded bits: a part of recovery, not of what went wrong."""
    computed_again: int | None
    """Tokens whose KV was computed a second time in a step that counted."""
    streams: int
    tokens: int
    """Compared with the undisturbed rerun."""
    differences: int
    first_difference: str | None
    leaks: list[str]
    rss_growth: int
    """Bytes."""
    problems: list[str]
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.problems


def judge(settings: SoakSettings, found: Found, comparison: Comparison | None) -> Report:
    """`comparison` None: there was nothing to compare with."""
    records = found.status.recoveries if found.status is not None else []
    growth = rss_growth(found.rss)
    report = Report(
        kills=len(found.blows),
        kills_by_kind=dict(sorted(Counter(blow.kind for blow in found.blows).items())),
        recoveries=len(records),
        pauses=_pauses(found.pauses),
        recomputed_requests=sum(record.recomputed_requests for record in records),
        recomputed_slots=sum(record.recomputed_slots for record in records),
        computed_again=None if comparison is None else comparison.computed_again,
        streams=len(found.streams),
        tokens=0 if comparison is None else comparison.tokens,
        differences=0 if comparison is None else comparison.differences,
        first_difference=None if comparison is None else comparison.first,
        leaks=list(found.leaks),
        rss_growth=growth,
        problems=[],
        seconds=found.seconds,
    )
    return msgspec.structs.replace(report, problems=_problems(settings, found, comparison, report))


def percentile(values: Sequence[float], part: float) -> float:
    """The least of `values` that a share of `part` (0 to 1) does not exceed: one of them, never between two."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def rss_growth(samples: Sequence[int]) -> int:
    """From the second quarter of a run to the last, in the middle of each; the first is for what fills up once."""
    quarter = len(samples) // 4
    if quarter == 0:
        return 0
    return int(median(samples[-quarter:]) - median(samples[quarter : 2 * quarter]))


def _pauses(pauses: Sequence[float]) -> Pauses | None:
    if not pauses:
        return None
    return Pauses(len(pauses), percentile(pauses, 0.5), percentile(pauses, 0.99), max(pauses))


def _problems(settings: SoakSettings, found: Found, comparison: Comparison | None, report: Report) -> list[str]:
    problems = [] if found.broken is None else [f"the run broke off: {found.broken}"]
    if report.kills < settings.kills:
        problems.append(f"{report.kills} of {settings.kills} kills were carried out")
    failed = [stream for stream in found.streams if stream.error is not None]
    if failed:
        problems.append(f"{len(failed)} streams failed, the first: {failed[0].request_id}: {failed[0].error}")
    mismatches = found.status.counters.get("replay_mismatches", 0) if found.status is not None else 0
    if mismatches:
        problems.append(f"{mismatches:.0f} replayed steps drew something else than was sent")
    corrupt = found.status.counters.get("scrub_corrupt_slots", 0) if found.status is not None else 0
    if corrupt:
        problems.append(f"the scrubber found {corrupt:.0f} damaged slots, and no bit was flipped")
    if comparison is None:
        problems.append("nothing was compared")
    else:
        problems += _unlike(found, comparison)
    problems += [f"leak: {leak}" for leak in report.leaks]
    if report.rss_growth > GROWTH:
        problems.append(f"leak: the server's resident memory grew by {report.rss_growth} bytes, allowed are {GROWTH}")
    return problems


def _unlike(found: Found, comparison: Comparison) -> list[str]:
    problems = []
    if comparison.tokens == 0:
        problems.append("no token was compared")
    if comparison.differences:
        problems.append(f"{comparison.differences} differences from the undisturbed rerun, first: {comparison.first}")
    garbled = [stream for stream in found.streams if stream.error is None and not _received(stream, comparison)]
    if garbled:
        name = garbled[0].request_id
        problems.append(f"{len(garbled)} clients received something else than the engine recorded, the first: {name}")
    return problems


def _received(stream: Stream, comparison: Comparison) -> bool:
    got = list(zip(stream.token_ids, stream.logprobs, strict=False))
    whole = len(stream.token_ids) == len(stream.logprobs) == stream.ask.max_tokens
    return whole and got == comparison.delivered.get(stream.request_id, [])
