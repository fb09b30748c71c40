"""vLLM's worker of this platform, with what a recovery needs: a shared cache, numbered steps, a state to restore.

Given to vLLM as `--worker-cls ghostserve.vllm.worker.GhostServeWorker`. All methods are called by vLLM's remote calls.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
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
from ghostserve.vllm.config import plugin_config
from ghostserve.vllm.steplog import RequestState
from ghostserve.vllm.support import unsupported
from ghostserve.workers.failpoints import Failpoints

if TYPE_CHECKING:
    from ghostserve.cuda.interface import Runtime
    from ghostserve.vllm.rank_memory import RankMemory

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker

__all__ = ["CacheFacts", "GhostServeWorker", "RebuildResult"]


class CacheFacts(msgspec.Struct, frozen=True):
    """A rank's cache: how peers map it, its size in blocks, slots and bytes, and how it is read."""

    handle: bytes
    num_blocks: int
    block_size: int
    slot_bytes: int
    data_path: str


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
        self._memory: RankMemory | None = None
        self._runtime: Runtime | None = None
        """The GPU, where there is one."""
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
        if not current_platform.is_cpu() and not unsupported(self.vllm_config):
            from ghostserve.vllm import devices

            self.local_rank = self.device_number
            self._runtime = devices.occupy(current_platform.logical_device_id_to_visible_device_id(self.local_rank))
            devices.await_memory(self._runtime, self.cache_config.gpu_memory_utilization)
        super().init_device()

    @property
    def device_number(self) -> int:
        """The GPU of this rank, as vLLM numbers those that it may use."""
        return plugin_config(self.vllm_config).devices(self.parallel_config.world_size)[self.rank]

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """Allocate the KV cache as vLLM does, and have it where peers can read it."""
        super().initialize_from_config(kv_cache_config)
        if unsupported(self.vllm_config):
            return  # served as stock vLLM does: the settings allow it, or the executor had refused
        self._imports.join()
        (group,) = kv_cache_config.kv_cache_groups
        context = self.compilation_config.static_forward_context
        layers = {name: context[name] for name in group.layer_names}
        self._memory = memory = self._make_memory(
            layers,
            on_done=lambda epoch, tasks: self.tell(msg.TasksDone(epoch, tasks)),
            on_error=lambda epoch, task, error: self.tell(
                msg.WorkerFailed(epoch, False, f"flush task {task.task_id}: {error!r}")
            ),
            on_stage=lambda stage: self._failpoints.hit(f"flush.{stage}", self.rank),
        )
        layout = memory.layout
        if (layout.num_blocks, layout.block_size) != (kv_cache_config.num_blocks, group.kv_cache_spec.block_size):
            raise UnsupportedModelError(
                f"the attention kernels see {layout.num_blocks} blocks of {layout.block_size} slots, the scheduler"
                f" {kv_cache_config.num_blocks} of {group.kv_cache_spec.block_size}:"
                f" set --block-size {layout.block_size}"
            )
        self._random = runner_state.RandomStates(self.model_runner)

    def _make_memory(self, layers: Mapping[str, Any], **callbacks: Any) -> "RankMemory":
        """The caches of `layers` as peers will read them: on a GPU in place, on the CPU moved to shared memory."""
        caches = {name: layer.kv_cache for name, layer in layers.items()}
        if self._runtime is not None:
            from ghostserve.vllm.device_memory import DeviceMemory, borrow
            from ghostserve.vllm.layout import strided_layout

            arena, offsets = borrow(self._runtime, caches)
            return DeviceMemory(self.rank, self._runtime, arena, strided_layout(caches, offsets), **callbacks)
        from ghostserve.vllm.caches import adopt
        from ghostserve.vllm.layout import CpuAttentionOp, probed_layout
        from ghostserve.vllm.rank_memory import HostMemory

        adopted = adopt(f"ghostserve-kv-{self.rank}", caches)
        runner = self.model_runner
        runner.kv_caches.clear()
        bind_kv_cache(adopted.tensors, self.compilation_config.static_forward_context, runner.kv_caches)
        ops = {
            name: CpuAttentionOp(layer.isa, self.model_config.dtype, self.cache_config.cache_dtype)
            for name, layer in layers.items()
        }
        layout = probed_layout(adopted.tensors, adopted.offsets, ops)
        return HostMemory(self.rank, adopted.region, layout, **callbacks)

    def cache_facts(self) -> CacheFacts:
        """How peers map this rank's cache, and its size."""
        memory = self._own_memory()
        layout = memory.layout
        return CacheFacts(memory.handle, layout.num_blocks, layout.block_size, layout.slot_bytes, memory.data_path)

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
        self, requests: Sequence[RequestState], batch: Sequence[str], random: runner_state.RandomState | int | None
    ) -> None:
        """Forget all requests, and know these instead.

        `random`: a survivor's state; or a number that a new one is made from, the same on all ranks; None: each rank
        keeps its own, as all are the same.
        """
        if random is None:
            random = runner_state.now(self.model_runner)
        elif isinstance(random, int):
            random = runner_state.fresh(self.model_runner.device, self.model_config.seed + random)
        with torch.inference_mode():
            runner_state.restore(self.model_runner, requests, batch, random)

    def _own_memory(self) -> "RankMemory":
        if self._memory is None:
            raise UnsupportedModelError("this rank has no KV cache yet")
        return self._memory


def _import_memory() -> None:
    if current_platform.is_cpu():
        from ghostserve.vllm import rank_memory  # noqa: F401
    else:
        from ghostserve.vllm import device_memory  # noqa: F401
