"""The tensor-parallel group as one object that can be bound again to new members.

The model's layers hold the communicator, not a process group: after a failure the group is destroyed and the same
layers go on with the next one.
"""

import socket
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from ghostserve.errors import GhostServeError

__all__ = ["Communicator", "CommunicatorError", "host_rendezvous"]

_TIMEOUT = timedelta(seconds=1800)  # hangs are the coordinator's business: it has the step deadline
_JOIN_TIMEOUT = timedelta(seconds=15)  # everyone is loaded and was asked at once: this takes milliseconds
_CONNECT_TIMEOUT = timedelta(seconds=5)  # the coordinator listens before it asks anyone to join
_HOST = "127.0.0.1"


class CommunicatorError(GhostServeError):
    """A collective failed because a peer is gone (or the group was never bound)."""


def host_rendezvous() -> TCPStore:
    """A rendezvous that the coordinator hosts on loopback; dropping it makes everyone who waits in it raise."""
    # Left to itself the store listens on every interface.
    listener = socket.create_server((_HOST, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        _HOST,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=_JOIN_TIMEOUT,
        master_listen_fd=listener.detach(),
    )


class Communicator:
    """All-reduce and gather among the ranks of one epoch."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.rank = -1
        self.in_collective = False
        self._bound = False

    def bind(self, *, rank: int, epoch: int, store_port: int) -> None:
        """Join the group of `epoch`. Raises `CommunicatorError` if a member does not come."""
        self.unbind()
        self.rank = rank
        self.in_collective = True
        try:
            # A TCPStore client tries again for its whole timeout where nobody listens any more: look first.
            socket.create_connection((_HOST, store_port), _CONNECT_TIMEOUT.total_seconds()).close()
            store = TCPStore(_HOST, store_port, is_master=False, wait_for_workers=False, timeout=_CONNECT_TIMEOUT)
            store.set_timeout(_JOIN_TIMEOUT)
            dist.init_process_group(
                "gloo",
                store=PrefixStore(f"epoch-{epoch}", store),
                rank=rank,
                world_size=self.world_size,
                timeout=_JOIN_TIMEOUT,
            )
            dist.distributed_c10d._set_pg_timeout(_TIMEOUT)
        except (RuntimeError, OSError) as error:
            raise CommunicatorError(f"rank {rank} could not join epoch {epoch}: {error}") from error
        finally:
            self.in_collective = False
        self._bound = True

    def unbind(self) -> None:
        """Leave the group. Closing the connections is also what frees peers that wait for us in a collective."""
        self._bound = False
        if dist.is_initialized():
            dist.destroy_process_group()
        # The rendezvous' keys carry this counter. A join that failed has moved it on without a group to destroy: the
        # next join would wait for keys that no newcomer ever writes.
        dist.distributed_c10d._world.group_count = 0

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            self._run(lambda: dist.all_reduce(tensor))
        return tensor

    def gather_columns(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Rank 0 gets the ranks' `[rows, columns]` side by side, the others None."""
        if self.world_size == 1:
            return tensor
        parts = None
        if self.rank == 0:
            parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        self._run(lambda: dist.gather(tensor, parts, dst=0))
        return None if parts is None else torch.cat(parts, dim=1)

    def _run(self, collective: Callable[[], object]) -> None:
        if not self._bound:
            raise CommunicatorError("the group was released: no collective may start before the next epoch")
        self.in_collective = True
        try:
            collective()
        except RuntimeError as error:
            raise CommunicatorError(str(error)) from error
        finally:
            self.in_collective = False
