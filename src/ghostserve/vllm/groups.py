"""vLLM's process groups, left and joined again in a living worker.

torch.distributed is initialised before vLLM does it, on a store that the executor hosts: vLLM then builds its groups on
what it finds, and a rendezvous that hangs can be cancelled by dropping the store.
"""

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.v1.worker.gpu_worker import init_worker_distributed_environment

from ghostserve.vllm.messages import QueueHandle
from ghostserve.vllm.queues import handle_of
from ghostserve.workers.rendezvous import HOST, connect, secret_prefix

__all__ = ["broadcaster", "coordinators", "init_method", "join", "leave", "meet"]

_COLLECTIVE_TIMEOUT = timedelta(seconds=1800)  # hangs are the executor's business: it has the step deadline


def init_method(epoch: int, rank: int) -> str:
    """What vLLM is told as the way to meet, which it does not use any more.

    On the CPU vLLM reduces through shared memory, and spins there for ever on a dead peer, unless ranks disagree on the
    name of that memory. It is the last part of this text: no two ranks have the same. `HostLinks` takes its place.
    """
    return f"tcp://{HOST}:0:epoch-{epoch}-rank-{rank}"


def meet(epoch: int, store_port: int, secret: str, rank: int, world_size: int, backend: str) -> None:
    """Initialise torch.distributed for `epoch`. Raises `RuntimeError` or `OSError` if a member does not come."""
    dist.init_process_group(
        backend,
        store=PrefixStore(secret_prefix(epoch, secret), connect(store_port)),
        rank=rank,
        world_size=world_size,
        timeout=_COLLECTIVE_TIMEOUT,
    )


def join(vllm_config: VllmConfig, epoch: int, rank: int, local_rank: int, backend: str) -> None:
    """A survivor's groups, on what `meet` has made."""
    with set_current_vllm_config(vllm_config):
        init_worker_distributed_environment(vllm_config, rank, init_method(epoch, rank), local_rank, backend)


def leave() -> None:
    """Destroy all groups, in whatever state they are. That closes connections, which frees peers stuck in them."""
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()
    # The rendezvous' keys carry this counter, and newcomers count from 0.
    dist.distributed_c10d._world.group_count = 0
    # Group names likewise: what was compiled has the first ones in it.
    parallel_state._group_name_counter.clear()
    parallel_state._groups.clear()


def broadcaster() -> QueueHandle | None:
    """The queue that the TP group's first rank has made to broadcast objects: should that rank die, it leaves names."""
    queue = parallel_state.get_tp_group().mq_broadcaster
    return handle_of(queue) if queue is not None else None


def coordinators() -> list[Any]:
    """vLLM's groups that this process is in."""
    found = [reference() for reference in parallel_state._groups.values()]
    return [group for group in found if group is not None]
