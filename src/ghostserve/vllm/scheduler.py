"""vLLM's scheduler, kept from reusing what a recovery may still have to run again.

A recovery restores the KV as the settled step left it and runs the later steps again. A block that one of them read
must not have been given to somebody else since: freed blocks rest until the steps before them are settled. vLLM itself
lets blocks rest until steps in flight have ended; this is the same, only a little longer.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from ghostserve.vllm.support import unsupported

__all__ = ["GhostServeScheduler", "ProtectedOutput"]


@dataclasses.dataclass
class ProtectedOutput(ModelRunnerOutput):
    """A step's answer, with what the executor has to tell the scheduler.

    `settled`: how many steps with tokens are never run again. `losses`: how often all KV was given up so far.
    """

    settled: int = 0
    losses: int = 0

    @classmethod
    def of(cls, output: ModelRunnerOutput, *, settled: int, losses: int) -> "ProtectedOutput":
        values = {field.name: getattr(output, field.name) for field in dataclasses.fields(ModelRunnerOutput)}
        return cls(**values, settled=settled, losses=losses)

    @classmethod
    def lost(cls, *, settled: int, losses: int) -> "ProtectedOutput":
        """For a step that never comes to an answer."""
        return cls(req_ids=[], req_id_to_index={}, settled=settled, losses=losses)


class GhostServeScheduler(AsyncScheduler):
    """For synchronous scheduling as well: there its placeholders are filled before the next step is scheduled."""

    def __new__(cls, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own scheduler for what is served unprotected."""
        if not unsupported(vllm_config):
            return super().__new__(cls)
        stock = AsyncScheduler if vllm_config.scheduler_config.async_scheduling else Scheduler
        return stock(vllm_config, *args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.defer_block_free = True
        self._settled = self._losses = 0

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """The step says which losses it knows of: the executor refuses those that still count on lost KV."""
        scheduled = super().schedule(*args, **kwargs)
        scheduled.known_losses = self._losses
        return scheduled

    def update_from_output(self, scheduled: SchedulerOutput, output: ModelRunnerOutput) -> Any:
        if isinstance(output, ProtectedOutput):
            self._settled = max(self._settled, output.settled)
            if output.losses > self._losses:
                self._losses = output.losses
                self._start_over()
        result = super().update_from_output(scheduled, output)
        self._drain_deferred_frees()
        return result

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        if self.processed_step_seq == self.sched_step_seq:
            # Nothing is in flight and what is cached is given up: only a death within these milliseconds would miss it.
            self._settled = self.sched_step_seq
            self._drain_deferred_frees()
        return bool(super().reset_prefix_cache(*args, **kwargs))

    def _start_over(self) -> None:
        """No KV is left: every running request is computed again from its tokens, and nothing cached is used."""
        while self.deferred_frees:
            _, blocks = self.deferred_frees.popleft()
            self._free(blocks)
        self.defer_block_free = False  # no step will write these blocks any more: preempted requests give them up now
        try:
            super().reset_prefix_cache(reset_running_requests=True)
        finally:
            self.defer_block_free = True

    # ---- vLLM's own hooks for resting blocks

    def _request_blocks_can_be_freed(self, request: Request) -> bool:
        return not self.defer_block_free or request.last_sched_seq <= self._safe

    def _drain_deferred_frees(self) -> None:
        while self.deferred_frees and self.deferred_frees[0][0] <= self._safe:
            _, blocks = self.deferred_frees.popleft()
            self._free(blocks)

    @property
    def _safe(self) -> int:
        return int(min(self.processed_step_seq, self._settled))

    def _free(self, blocks: Iterable[Any]) -> None:
        # The tail first, as vLLM does: it is the first to be evicted from the prefix cache.
        self.kv_cache_manager.block_pool.free_blocks(reversed(list(blocks)))
