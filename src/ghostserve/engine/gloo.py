"""The communicator of ranks on the CPU.

A neighbour of a dead peer raises after some 20 ms; others are freed when those neighbours leave the group.
"""

from datetime import timedelta

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from ghostserve.engine.communicator import JOIN_TIMEOUT, Communicator

__all__ = ["GlooCommunicator"]

_TIMEOUT = timedelta(seconds=1800)  # hangs are the coordinator's business: it has the step deadline


class GlooCommunicator(Communicator):
    """Collectives end when their call returns; a lost peer makes them raise."""

    def _connect(self, store: Store, epoch: int) -> None:
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.world_size, timeout=JOIN_TIMEOUT)
        dist.distributed_c10d._set_pg_timeout(_TIMEOUT)
