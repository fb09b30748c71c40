"""One engine's queue: continuous batching step by step, with pauses where it fails.

Steps that are alike (the same decodes, nobody new) are taken at once: the result is that of taking each.
"""

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from ghostserve.fleetsim.constants import Constants

__all__ = ["Restore", "Served", "serve"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Restore:
    """KV of up to `covered` GPUs lost at once comes back, in `seconds_per_token` of all contexts for each GPU."""

    covered: int
    seconds_per_token: float


@dataclass(frozen=True)
class Served:
    """`first` and `end`: when each request had its first and last token, seconds. Then sums over the engine's failures.

    `pause_s`: from failure until steps run again; `recovery_s`: until every context is where it was;
    `recomputed_tokens` went through a prefill again.
    """

    first: Floats
    end: Floats
    pause_s: float
    recovery_s: float
    recomputed_tokens: int


def serve(
    at: Floats,
    prompt: Ints,
    output: Ints,
    *,
    fault_at: Floats,
    fault_down: Floats,
    fault_lost: Ints,
    constants: Constants,
    restore: Restore,
    overhead: float = 0.0,
) -> Served:
    """Serve requests that come at `at` (seconds, ascending), first come, first served, as the engine's scheduler does.

    Fault i comes at `fault_at[i]` (ascending), loses `fault_lost[i]` GPUs, and the group is whole again `fault_down[i]`
    seconds later; then what is covered is restored, else every context is computed again. The step it hits is lost.
    """
    c, slower = constants, 1 + overhead
    first, end = np.full(len(at), np.nan), np.full(len(at), np.nan)
    pause, recovery, again = _serve(
        at,
        prompt,
        output,
        fault_at,
        fault_down,
        fault_lost,
        c.decode_step_s * slower,
        c.decode_seq_s * slower,
        slower / c.prefill_tokens_per_s,
        c.max_num_seqs,
        c.max_num_batched_tokens,
        restore.covered,
        restore.seconds_per_token,
        c.prefill_step_s * slower,
        c.standby_s,
        1 + c.standby_overhead,
        first,
        end,
    )
    return Served(first, end, pause, recovery, int(again))


def _serve_plain(
    at: Any,
    prompt: Any,
    output: Any,
    fault_at: Any,
    fault_down: Any,
    fault_lost: Any,
    base: float,
    per_seq: float,
    per_token: float,
    max_seqs: int,
    max_tokens: int,
    covered: int,
    restore: float,
    per_prefill: float,
    standby: float,
    beside: float,
    first: Any,
    end: Any,
) -> Any:
    n, faults = len(at), len(fault_at)
    who = np.zeros(max_seqs, np.int64)
    todo = np.zeros(max_seqs, np.int64)  # prefill tokens still to come
    kept = np.zeros(max_seqs, np.int64)  # tokens whose KV is there
    left = np.zeros(max_seqs, np.int64)  # tokens still to draw
    again = np.zeros(max_seqs, np.bool_)  # computes anew what a failure took
    take = np.zeros(max_seqs, np.int64)
    running = next_one = fault = redone = 0
    now = pause = recovery = 0.0
    disturbed = -1.0
    starting = -1.0  # until then a standby starts, and steps take `beside` times as long
    while next_one < n or running > 0 or fault < faults:
        if running == 0 and (next_one >= n or at[next_one] > now):
            coming = at[next_one] if next_one < n else math.inf
            fails = fault < faults and fault_at[fault] <= coming
            now = max(now, fault_at[fault]) if fails else coming
        if fault < faults and fault_at[fault] <= now:
            began = fault_at[fault]
            lost = 0
            tokens = 0
            for i in range(running):
                tokens += kept[i]
            ready = began
            until = now
            # One that comes before the last is mended adds to what is lost.
            while fault < faults and (lost == 0 or fault_at[fault] <= until):
                lost += fault_lost[fault]
                ready = max(ready, fault_at[fault] + fault_down[fault])
                starting = fault_at[fault] + standby
                until = max(until, ready + (tokens * restore * lost if lost <= covered else 0.0))
                fault += 1
            pause += until - began
            now = until
            if disturbed < 0:
                disturbed = began
            if lost > covered:
                for i in range(running):
                    if kept[i] > 0:
                        redone += kept[i]
                        todo[i] += kept[i]
                        kept[i] = 0
                        again[i] = True
        if disturbed >= 0:
            any_left = False
            for i in range(running):
                any_left = any_left or again[i]
            if not any_left:
                recovery += now - disturbed
                disturbed = -1.0
        budget, decodes, prefill = max_tokens, 0, 0
        for i in range(running):
            take[i] = 0
            if todo[i] == 0:
                decodes += 1
        budget -= decodes
        for i in range(running):
            if todo[i] > 0:
                take[i] = min(budget, todo[i])
                budget -= take[i]
                prefill += take[i]
        while next_one < n and at[next_one] <= now and running < max_seqs and budget > 0:
            i = running
            who[i], todo[i], kept[i], left[i], again[i] = next_one, prompt[next_one], 0, output[next_one], False
            take[i] = min(budget, todo[i])
            budget -= take[i]
            prefill += take[i]
            running += 1
            next_one += 1
        if running == 0:
            continue
        length = base + per_seq * decodes + per_token * prefill
        if prefill > 0:
            length += per_prefill
        if now < starting:
            length *= beside
        steps = 1
        if prefill == 0:
            steps = left[0]
            for i in range(1, running):
                steps = min(steps, left[i])
            if next_one < n and running < max_seqs and length > 0:
                steps = max(1, min(steps, math.ceil((at[next_one] - now) / length)))
            if now < starting and length > 0:
                steps = max(1, min(steps, math.ceil((starting - now) / length)))
        if fault < faults and length > 0 and now + steps * length > fault_at[fault]:
            steps = min(steps, int((fault_at[fault] - now) / length))
            if steps <= 0:
                now = fault_at[fault]
                continue
        now += steps * length
        stay = 0
        for i in range(running):
            drawn = 0
            if todo[i] > 0:
                todo[i] -= take[i]
                kept[i] += take[i]
                if todo[i] == 0:
                    drawn = 1
                    again[i] = False
            else:
                drawn = steps
                kept[i] += steps
            if drawn > 0 and np.isnan(first[who[i]]):
                first[who[i]] = now
            left[i] -= drawn
            if left[i] <= 0:
                end[who[i]] = now
            else:
                who[stay], todo[stay], kept[stay], left[stay] = who[i], todo[i], kept[i], left[i]
                again[stay] = again[i]
                stay += 1
        running = stay
    if disturbed >= 0:
        recovery += now - disturbed
    return pause, recovery, redone


def _compile() -> Any:
    try:
        return numba.njit(nogil=True, cache=True)(_serve_plain)
    except RuntimeError:  # no folder to cache in can be written: compile once per process
        return numba.njit(nogil=True)(_serve_plain)


_serve = _compile()
