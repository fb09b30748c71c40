"""Bringing all ranks to where the engine believes them to be: the base restored, the steps after it run again."""

import logging
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghostserve.vllm.calls import Calls, PendingCall
from ghostserve.vllm.protection import Protection
from ghostserve.vllm.steplog import LoggedStep

__all__ = ["ALL", "Ask", "Replay", "Script"]

ALL = None
"""As the rank that answers: each of them."""

log = logging.getLogger("vllm.ghostserve.recovery")


@dataclass(frozen=True)
class Ask:
    """A call to all ranks; `reply` says which one's answer is waited for."""

    method: str
    args: tuple[Any, ...] = ()
    reply: int | None = ALL


Script = Generator[Ask, Any, None]
"""Yields what to ask and is sent the answer: a list of the ranks', or the one rank's alone."""


class Replay:
    """One recovery's last part. Beyond what parity covers there is nothing to replay: then everything starts over."""

    def __init__(self, protection: Protection, calls: Calls, *, survivor: int | None, start_over: str) -> None:
        """`survivor`: a rank that still has the random states. `start_over`: why nothing is replayed, or empty."""
        self._protection, self._calls, self._survivor = protection, calls, survivor
        self._start_over = start_over
        self.steps = 0
        self.recomputed = 0
        self.mismatches = 0

    def script(self) -> Script:
        """What to ask; resolves the engine's pending steps on its way."""
        log_, calls = self._protection.log, self._calls
        with calls.lock:
            if self._start_over:
                self._give_up()
            base = log_.base
            requests, batch, entries = list(base.requests.values()), list(base.batch), list(log_.entries)
        random: Any = self._protection.losses
        if self._survivor is not None and not self._start_over:
            random = yield Ask("random_state", (base.step + 1,), self._survivor)
        yield Ask("restore", (requests, batch, random))
        for entry in entries:
            yield from self._run_again(entry)
        with calls.taken_over() as pending:
            for call in [call for call in pending if call.entry is not None and call.entry.lost]:
                pending.remove(call)
                call.future.set_result(self._protection.lost_output())
            others = [call for call in pending if not call.is_step]
        for call in others:
            yield from self._ask_again(call)

    # ---- inside

    def _run_again(self, entry: LoggedStep) -> Script:
        self.steps += 1
        with self._calls.lock:
            notes = self._protection.again(entry)
        answer = yield Ask("run_step", (entry.scheduled, notes), 0)
        self._compare_or_resolve("run_step", entry, answer)
        if entry.sampled:
            answer = yield Ask("sample_tokens", (entry.grammar,), 0)
            self._compare_or_resolve("sample_tokens", entry, answer)

    def _compare_or_resolve(self, method: str, entry: LoggedStep, answer: Any) -> None:
        with self._calls.taken_over() as pending:
            call = next((call for call in pending if call.entry is entry and call.method == method), None)
            if call is not None:
                pending.remove(call)
                self._calls.resolve(call, [(True, answer)])
            elif answer is not None and entry.output is not None and not _same(entry.output, answer):
                # The engine has the first answer, and what it was drawn from is here again: bits should be equal.
                self.mismatches += 1
                log.error("step %d came out differently when it was run again", entry.step)

    def _ask_again(self, call: PendingCall) -> Script:
        assert isinstance(call.method, str)
        results = yield Ask(call.method, call.args, call.reply_rank)
        with self._calls.taken_over() as pending:
            pending.remove(call)
            values = results if call.reply_rank is None else [results]
            self._calls.resolve(call, [(True, value) for value in values])

    def _give_up(self) -> None:
        """Under the lock: every running request is computed again from its tokens."""
        protection, pending = self._protection, self._calls.pending
        protection.start_over()
        self.recomputed = len(protection.log.base.requests)
        log.warning("%d requests are computed again from their tokens: %s", self.recomputed, self._start_over)
        for call in [call for call in pending if call.entry is not None]:
            pending.remove(call)
            # Where both of a step's calls are out, it is the second one that has the step's answer.
            last = call.method == "sample_tokens" or not (call.entry and call.entry.sampled)
            call.future.set_result(protection.lost_output() if last else None)
        self._calls.lock.notify_all()


def _same(one: Any, other: Any) -> bool:
    """The same tokens for the same requests, and the same logprobs bit by bit."""
    if (one.req_ids, one.sampled_token_ids) != (other.req_ids, other.sampled_token_ids):
        return False
    if (one.logprobs is None) != (other.logprobs is None):
        return False
    if one.logprobs is None:
        return True
    return np.asarray(one.logprobs.logprobs).tobytes() == np.asarray(other.logprobs.logprobs).tobytes()
