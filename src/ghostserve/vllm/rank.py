"""vLLM's worker process as far as it is used here: it runs calls and answers them."""

import threading
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.executor.multiproc_executor import WorkerProc

from ghostserve.errors import GhostServeError
from ghostserve.vllm import groups
from ghostserve.vllm import messages as msg

__all__ = ["Rank"]

_DRAIN_SECONDS = 30.0


class Rank(WorkerProc):
    """Has none of vLLM's start, end and loop; its queues are set from outside, as they are new in every epoch."""

    def __init__(self, vllm_config: VllmConfig, rank: int, join: msg.Join) -> None:
        """Builds the model of `rank`, in the group that `join` names."""
        super().__init__(
            vllm_config=vllm_config,
            local_rank=rank,
            rank=rank,
            distributed_init_method=groups.init_method(join.epoch, rank),
            input_shm_handle=None,
            shared_worker_lock=None,
            is_driver_worker=rank == 0,
        )

    def _init_message_queues(self, input_shm_handle: Any, vllm_config: VllmConfig) -> None:
        self.peer_response_handles: list[Any] = []
        self.rpc_broadcast_mq = self.worker_response_mq = None

    def enqueue_output(self, output: Any) -> None:
        """As vLLM does; an event among the outputs is set when those before it are done with."""
        if isinstance(output, threading.Event):
            output.set()
        else:
            super().enqueue_output(output)

    def drain(self) -> None:
        """Wait until no output of this epoch is on its way: it must not come to the next epoch's queue."""
        if self.use_async_scheduling:
            passed = threading.Event()
            self.async_output_queue.put(passed)
            if not passed.wait(_DRAIN_SECONDS):
                raise GhostServeError(f"an output was still being copied after {_DRAIN_SECONDS:g} s")
