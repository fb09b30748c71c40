"""The executor that vLLM is given: its workers may die, and what they computed goes on.

Given to vLLM as `--distributed-executor-backend ghostserve.vllm.executor.GhostServeExecutor`.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cloudpickle
from vllm.config import VllmConfig
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.executor.abstract import Executor, FailureCallback
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.outputs import ModelRunnerOutput

import vllm
from ghostserve.errors import GhostServeError
from ghostserve.parity.geometry import ShardMap
from ghostserve.vllm.calls import Answers, Calls, PendingCall
from ghostserve.vllm.config import plugin_config
from ghostserve.vllm.coordinator import Coordinator
from ghostserve.vllm.protection import Protection
from ghostserve.vllm.record import Recorder, Setup, Step
from ghostserve.vllm.scheduler import ProtectedOutput
from ghostserve.vllm.status_file import StatusPublisher, status_path
from ghostserve.vllm.steplog import LoggedStep
from ghostserve.vllm.support import check, check_classes, check_version
from ghostserve.vllm.unprotected import publish_unprotected
from vllm import envs

__all__ = ["GhostServeExecutor"]

_SETUP = ("set_kv_cache_layout", "initialize_from_config", "compile_or_warm_up_model")
"""Calls that make a worker what it is: a newcomer gets them as well."""
_FIRST = 0
"""The rank whose answer to a step counts, as in vLLM without pipeline stages."""

log = logging.getLogger("vllm.ghostserve")


class GhostServeExecutor(Executor):
    """vLLM's engine sees an executor whose steps now and then take a second or two longer."""

    supports_pp = False

    def __new__(cls, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own executor for what can't be protected, where the settings allow that."""
        check_version(vllm.__version__)
        check_classes(vllm_config)
        refusals = check(vllm_config, plugin_config(vllm_config))
        if not refusals:
            return super().__new__(cls)
        for refusal in refusals:
            log.warning("served without protection: %s: %s", refusal.feature, refusal.reason)
        publish_unprotected(vllm_config, refusals)
        return MultiprocExecutor(vllm_config, *args, **kwargs)

    def _init_executor(self) -> None:
        self._plugin = plugin_config(self.vllm_config)
        self._plugin.check_ranks(self._shard_map().num_shards)
        self._calls = Calls(self.parallel_config.world_size, self._answered)
        self._protection: Protection | None = None
        self._failure_callback: FailureCallback | None = None
        self._unsampled: LoggedStep | None = None
        self._recorder: Recorder | None = None
        self._door = threading.Lock()
        self._publisher = StatusPublisher(status_path(self._plugin.status_path, self.vllm_config.instance_id))
        self._coordinator = Coordinator(
            self.vllm_config,
            self._plugin,
            self._calls,
            max_chunk_bytes=envs.VLLM_MQ_MAX_CHUNK_BYTES_MB << 20,
            publish=self._publisher.publish,
            on_failure=self._failed,
        )
        self._coordinator.start()
        self._coordinator.wait_started()

    def _shard_map(self) -> ShardMap:
        return ShardMap.for_kv_heads(self.parallel_config.world_size, self.model_config.get_total_num_kv_heads())

    # ---- vLLM's calls

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
        unique_reply_rank: int | None = None,
        **unused: Any,
    ) -> Any:
        """A call to all workers; one that a death interrupts is sent again after the recovery."""
        name = method if isinstance(method, str) else cloudpickle.dumps(method)
        future = self._calls.submit(
            lambda: PendingCall(name, args, kwargs or {}, unique_reply_rank, self._calls.future())
        )
        if method in _SETUP and isinstance(method, str):
            self._coordinator.driver.setup.append((method, args))
        return future if non_block else future.result()

    def initialize_from_config(self, kv_cache_configs: list[Any]) -> None:
        """Have the caches made, then take the memory for their parity and show everyone where all of it is."""
        super().initialize_from_config(kv_cache_configs)
        facts = self.collective_rpc("cache_facts")
        protection = Protection(self._plugin, self._shard_map(), facts[0])
        protection.fence(self._coordinator.driver.machine.epoch)
        handles = [fact.handle for fact in facts]
        self.collective_rpc("attach", args=(self._coordinator.driver.machine.epoch, handles, protection.handle))
        self._protection = protection
        self._coordinator.protect(protection)

    def execute_model(
        self, scheduler_output: SchedulerOutput, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput | None] | None:
        """A step. vLLM's scheduler has said which losses of KV it knows; what counts on lost KV is not run."""
        future = self._calls.submit(lambda: self._step(scheduler_output))
        return future if non_block else future.result()

    def sample_tokens(
        self, grammar_output: GrammarOutput | None, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput]:
        """The step's second half."""
        entry, self._unsampled = self._unsampled, None
        assert entry is not None, "sample_tokens without execute_model"
        future = self._calls.submit(lambda: self._sampling(entry, grammar_output))
        return future if non_block else future.result()

    def check_health(self) -> None:
        """Raises the failure, if there is one; during a recovery all is well."""
        if self._calls.failure is not None:
            raise self._calls.failure

    def register_failure_callback(self, callback: FailureCallback) -> None:
        with self._door:
            self._failure_callback = callback
            failed = self._calls.failure is not None
        if failed:
            callback()

    def shutdown(self) -> None:
        """End the workers. Idempotent."""
        coordinator = getattr(self, "_coordinator", None)
        if coordinator is not None:
            coordinator.stop()
            self._publisher.close()
            if self._recorder is not None:
                self._recorder.close()

    def give_up(self, scheduled: SchedulerOutput) -> None:
        """Drop all KV and do not run this step: for the rerun of a schedule in which that happened."""
        protection = self._protection
        assert protection is not None
        random = None
        if _known_losses(scheduled) == protection.losses:
            protection.start_over()
            random = protection.losses
        self._calls.submit(lambda: self._refused(scheduled, protection, random)).result()

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        return True

    # ---- inside

    def _step(self, scheduled: SchedulerOutput) -> PendingCall:
        """Under the calls' lock."""
        protection = self._protection
        assert protection is not None, "a step before there is a KV cache"
        if self._plugin.record is not None and self._recorder is None:
            setup = Setup(self.vllm_config, self._coordinator.driver.setup)
            self._recorder = Recorder(Path(self._plugin.record), setup)
            protection.on_lost = self._note_lost
        if _known_losses(scheduled) < protection.losses:
            return self._refused(scheduled, protection)
        entry, notes = protection.begin(scheduled)
        if scheduled.total_num_scheduled_tokens:
            self._unsampled = entry
        return PendingCall("run_step", (scheduled, notes), {}, _FIRST, self._calls.future(), entry)

    def _refused(self, scheduled: SchedulerOutput, protection: Protection, random: int | None = None) -> PendingCall:
        """Workers only learn which requests there are."""
        self._unsampled = entry = protection.refuse(scheduled)
        self._note_lost([entry])
        requests = list(protection.log.base.requests.values())
        return PendingCall("restore", (requests, [], random), {}, _FIRST, self._calls.future(), entry)

    def _sampling(self, entry: LoggedStep, grammar: GrammarOutput | None) -> PendingCall | Answers:
        """Under the calls' lock."""
        if entry.lost:
            answer = self._calls.future()
            answer.set_result(self._lost())
            return answer
        if grammar is not None:  # vLLM fills the same mask anew for each step, and a replay needs this one
            grammar = dataclasses.replace(grammar, grammar_bitmask=grammar.grammar_bitmask.copy())
        entry.grammar, entry.sampled = grammar, True
        return PendingCall("sample_tokens", (grammar,), {}, _FIRST, self._calls.future(), entry)

    def _answered(self, call: PendingCall, result: Any) -> Any:
        """What the engine gets; under the calls' lock."""
        entry, protection = call.entry, self._protection
        if entry is None or protection is None:
            return result
        if entry.lost:
            return self._lost()
        if result is None:  # the first half of a step
            return None
        settled = protection.answered(entry, result)
        if self._recorder is not None:
            self._recorder.add(Step(entry.scheduled, entry.grammar, result))
        return ProtectedOutput.of(result, settled=settled, losses=protection.losses)

    def _note_lost(self, entries: Sequence[LoggedStep]) -> None:
        if self._recorder is not None:
            for entry in entries:
                self._recorder.add(Step(entry.scheduled, entry.grammar, None))

    def _lost(self) -> ProtectedOutput:
        assert self._protection is not None
        return self._protection.lost_output()

    def _failed(self, failure: GhostServeError) -> None:
        with self._door:
            callback, self._failure_callback = self._failure_callback, None
        if callback is not None:
            callback()


def _known_losses(scheduled: SchedulerOutput) -> int:
    """How many losses of all KV the scheduler knew of when it made this step."""
    return int(scheduled.known_losses)
