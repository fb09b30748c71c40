"""What scrubbing finds becomes log lines, status and remedies: see `scrubbing` for what is verified when."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from ghostserve.checkpoint.tasks import FlushTask
from ghostserve.engine import messages as msg
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.memory import EngineMemory
from ghostserve.engine.modelspec import ModelSpec
from ghostserve.engine.scrubbing import Scrubbing
from ghostserve.engine.serving import Serving
from ghostserve.recovery.machine import RecoveryMachine
from ghostserve.status import ScrubFinding

__all__ = ["ScrubDriver"]

log = logging.getLogger("ghostserve.engine")

_FINDINGS = 32
"""How many the status shows, the latest ones."""


class ScrubDriver:
    """Belongs to the coordinator, on whose thread everything is called.

    Damaged parity or records: the slots are flushed again, from KV whose checksums are right (or, without a whole
    record, from the KV that the model reads). Damaged KV of a rank can't be changed under a running model: its
    request is recomputed from its tokens as soon as no step runs, and other blocks take its place.
    """

    def __init__(
        self,
        config: EngineConfig,
        spec: ModelSpec,
        memory: EngineMemory,
        serving: Serving,
        observer: Callable[[str, dict[str, object]], None],
    ) -> None:
        self._serving, self._observer = serving, observer
        ranks, parity = spec.tensor_parallel_size, memory.code.k if memory.code is not None else 0
        self._scrubbing = Scrubbing(
            serving,
            rate=config.scrub_rate if parity else 0,
            slot_bytes=(ranks + parity) * memory.layout.slot_bytes,
            num_ranks=ranks,
            is_committed=memory.is_committed,
        )
        self._rotten: set[str] = set()
        self._recomputed = 0
        self.findings: deque[ScrubFinding] = deque(maxlen=_FINDINGS)

    def go_on(self, machine: RecoveryMachine, send: Callable[[int, msg.Scrub], object]) -> None:
        """The engine serves: have the next slots verified, if it is time."""
        wanted = self._scrubbing.next(machine.epoch, time.monotonic())
        if wanted is not None:
            rank, scrub = wanted
            send(machine.members[rank], scrub)

    def flushing(self, tasks: Sequence[FlushTask]) -> None:
        """A step is sent out with these tasks."""
        self._scrubbing.flushing(tasks)

    def refused(self, task_id: int) -> None:
        """The store's medium did not take the slots of this outstanding task."""
        for task in self._serving.ledger.outstanding:
            if task.task_id == task_id:
                self._scrubbing.refused(task)

    def heard(self, report: msg.Scrubbed) -> None:
        """A worker has verified what it was asked to."""
        if report.error:
            log.warning("scrubbing: the store can't be read: %s", report.error)
        findings = self._scrubbing.heard(report)
        self._rotten |= {f.request_id for f in findings if f.live}
        for found in findings:
            slot = found.slot
            log.warning(
                "scrubbing: %s, block %d, slot %d of request %s: silent corruption (%s)",
                found.where, slot.block, slot.start, found.request_id, found.remedy,
            )  # fmt: skip
            self.findings.append(ScrubFinding(found.where, slot.block, slot.start, found.request_id, found.remedy))
            self._observer("corrupt", {"finding": found})
            if found.request_id not in self._rotten:
                self._serving.flush_again(found.request_id, [slot])

    def recompute(self) -> None:
        """No step runs: requests whose KV is damaged begin again from their tokens."""
        if self._rotten:
            for request in self._serving.recompute(self._rotten):
                log.warning("request %s is recomputed from its tokens: its KV was damaged", request.request_id)
                self._recomputed += 1
            self._rotten.clear()

    def fenced(self) -> None:
        """A recovery begins. Its rebuild verifies all KV that it counts on; what it does not, the next pass finds."""
        self._rotten.clear()

    @property
    def counts(self) -> dict[str, float]:
        """Counters of the status; none where nothing is scrubbed."""
        counts = {name: float(value) for name, value in self._scrubbing.counts.items()}
        return counts | {"scrub_recomputed_requests": float(self._recomputed)} if counts else {}
