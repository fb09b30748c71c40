"""vLLM's worker of this platform, with what a recovery needs: a shared cache, numbered steps, a state to restore.

Given to vLLM as `--worker-cls ghostserve.vllm.worker.GhostServeWorker`. All methods are called by vLLM's remote calls.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from vllm.platforms import current_platform
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.utils import bind_kv_cache

from ghostserve.errors import UnsupportedModelError
from ghostserve.parity.ranges import SlotRange
from ghostserve.vllm import messages as msg
from ghostserve.vllm import runner_state
from ghostserve.vllm.steplog import RequestState
from ghostserve.vllm.support import unsupported
from ghostserve.workers.failpoints import Failpoints

if TYPE_CHECKING:
    from ghostserve.vllm.rank_memory import HostMemory

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker

__all__ = ["CacheFacts", "GhostServeWorker", "RebuildResult"]


class CacheFacts(msgspec.Struct, frozen=True):
    """A rank's cache: how peers map it, and its size in blocks, slots and bytes."""

    handle: bytes
    num_blocks: int
    block_size: int
    slot_bytes: int


class RebuildResult(msgspec.Struct, frozen=True):
    """What a rank's rebuild came to."""

    bytes_rebuilt: int = 0
    bytes_read: int = 0
    failed: tuple[SlotRange, ...] = ()
    reasons: tuple[str, ...] = ()


class GhostServeWorker(PlatformWorker):
    """Between two calls it knows its epoch, its cache and what vLLM's model runner keeps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epoch = 0
        self.tell: Callable[[msgspec.Struct], object] = lambda message: None
        """To the executor, beside vLLM's queues; set by the process that this worker lives in."""
        self._memory: HostMemory | None = None
        self._imports = threading.Thread(target=_import_memory, name="imports", daemon=True)
        self._random: runner_state.RandomStates | None = None
        self._failpoints = Failpoints.from_environment()

    # ---- the cache

    def init_device(self) -> None:
        """vLLM has replaced its kernels where the platform has others; only now numba may be imported.

        To replace them it looks through all modules, and stumbles over those of numba. What numba brings is needed when
        the weights are loaded.
        """
        self._imports.start()
        super().init_device()

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """Allocate the KV cache as vLLM does, then move it to where peers can read it."""
        super().initialize_from_config(kv_cache_config)
        if unsupported(self.vllm_config):
            return  # served as stock vLLM does: the settings allow it, or the executor had refused
        self._imports.join()
        from ghostserve.vllm.caches import adopt
        from ghostserve.vllm.layout import CpuAttentionOp, probed_layout
        from ghostserve.vllm.rank_memory import HostMemory

        context = self.compilation_config.static_forward_context
        (group,) = kv_cache_config.kv_cache_groups
        layers = {name: context[name] for name in group.layer_names}
        caches = adopt(f"ghostserve-kv-{self.rank}", {name: layer.kv_cache for name, layer in layers.items()})
        runner = self.model_runner
        runner.kv_caches.clear()
        bind_kv_cache(caches.tensors, context, runner.kv_caches)
        ops = {
            name: CpuAttentionOp(layer.isa, self.model_config.dtype, self.cache_config.cache_dtype)
            for name, layer in layers.items()
        }
        layout = probed_layout(caches.tensors, caches.offsets, ops)
        if (layout.num_blocks, layout.block_size) != (kv_cache_config.num_blocks, group.kv_cache_spec.block_size):
            raise UnsupportedModelError(
                f"the attention kernels see {layout.num_blocks} blocks of {layout.block_size} slots, the scheduler"
                f" {kv_cache_config.num_blocks} of {group.kv_cache_spec.block_size}:"
                f" set --block-size {layout.block_size}"
            )
        self._memory = HostMemory(
            self.rank,
            caches.region,
            layout,
            on_done=lambda epoch, tasks: self.tell(msg.TasksDone(epoch, tasks)),
            on_error=lambda epoch, task, error: self.tell(
                msg.WorkerFailed(epoch, False, f"flush task {task.task_id}: {error!r}")
            ),
            on_stage=lambda stage: self._failpoints.hit(f"flush.{stage}", self.rank),
        )
        self._random = runner_state.RandomStates(runner)

    def cache_facts(self) -> CacheFacts:
        """How peers map this rank's cache, and its size."""
        memory = self._own_memory()
        layout = memory.layout
        return CacheFacts(memory.handle, layout.num_blocks, layout.block_size, layout.slot_bytes)

    def attach(self, epoch: int, handles: Sequence[bytes], store: msg.StoreHandle) -> None:
        """All ranks have their caches: map them and the parity store."""
        if epoch == self.epoch:
            self._own_memory().attach(handles, store)

    def let_go(self) -> None:
        """The epoch is over: no flush of it is under way afterwards, and no peer's memory mapped."""
        if self._memory is not None:
            self._memory.release()

    def rebuild(self, lost_ranks: Sequence[int], ranges: Sequence[SlotRange], skip: bool) -> RebuildResult | None:
        """Ranks that were lost fill their caches' `ranges` again."""
        if self.rank not in lost_ranks:
            return None
        self._failpoints.hit("rebuild.begin", self.rank)
        report = self._own_memory().rebuild(lost_ranks, ranges, skip=skip)
        self._failpoints.hit("rebuild.end", self.rank)
        if report is None:
            return RebuildResult()
        rebuilt = report.bytes_rebuilt + report.bytes_copied
        return RebuildResult(rebuilt, report.bytes_read, tuple(report.failed), tuple(report.reasons))

    # ---- steps

    def run_step(self, scheduled: SchedulerOutput, notes: msg.StepNotes) -> Any:
        """vLLM's `execute_model`, then the step's flushes in the shadow."""
        assert self._random is not None
        self._failpoints.hit("step.begin", self.rank)
        self._random.note(notes.step, notes.settled)
        output = self.execute_model(scheduled)
        # This rank has passed the step's last all-reduce, so every rank has written the step's KV.
        self._own_memory().submit(self.epoch, notes.flush)
        self._failpoints.hit("step.end", self.rank)
        return output

    def random_state(self, step: int) -> runner_state.RandomState:
        """What this rank's random states were when `step` began."""
        assert self._random is not None
        return self._random.before(step)

    def restore(
        self, requests: Sequence[RequestState], batch: Sequence[str], random: runner_state.RandomState | None
    ) -> None:
        """Forget all requests, and know these instead. `random` None: nobody is left who has it."""
        if random is None:
            random = runner_state.fresh(self.model_runner.device, self.model_config.seed + self.epoch)
        with torch.inference_mode():
            runner_state.restore(self.model_runner, requests, batch, random)

    def _own_memory(self) -> "HostMemory":
        if self._memory is None:
            raise UnsupportedModelError("this rank has no KV cache yet")
        return self._memory


def _import_memory() -> None:
    from ghostserve.vllm import rank_memory  # noqa: F401
