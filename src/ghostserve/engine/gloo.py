"""The communicator of ranks on the CPU.

A neighbour of a dead peer raises after some 20 ms; others are freed when those neighbours leave the group.
"""

from datetime import timedelta

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from ghostserve.engine.communicator import JOIN_TIMEOUT, Communicator

__all__ = ["GlooCommunicator"]

_CONNECT_TIMEOUT = timedelta(seconds=1)
"""gloo waits five times as long for a peer that has left its address and then died, and nothing ends that wait."""
_TIMEOUT = timedelta(seconds=1800)  # hangs are the coordinator's business: it has the step deadline


class GlooCommunicator(Communicator):
    """Collectives end when their call returns; a lost peer makes them raise."""

    def _connect(self, store: Store, epoch: int) -> None:
        # First until all are there: that wait ends when the coordinator gives the rendezvous up. Then connecting takes
        # milliseconds, and only who dies in these is waited for.
        store.set(_here(self.rank), "")
        store.wait([_here(rank) for rank in range(self.world_size)], JOIN_TIMEOUT)
        dist.init_process_group(
            "gloo", store=store, rank=self.rank, world_size=self.world_size, timeout=_CONNECT_TIMEOUT
        )
        dist.distributed_c10d._set_pg_timeout(_TIMEOUT)


def _here(rank: int) -> str:
    return f"here-{rank}"
