"""The tensor-parallel group as one object that can be bound again to new members.

The model's layers hold the communicator, not a process group: after a failure the group is destroyed and the same
layers go on with the next one. Siblings: `gloo` for the CPU, `nccl` for CUDA.
"""

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from ghostserve.errors import GhostServeError
from ghostserve.workers.rendezvous import JOIN_TIMEOUT, connect
from ghostserve.workers.sealed_store import SealedStore

__all__ = ["JOIN_TIMEOUT", "Communicator", "CommunicatorError", "make_communicator"]


_REFUSED = tuple(os.strerror(code) for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""gloo and torch tell a refusal of the system by its words alone."""
_NO_THREAD = os.strerror(errno.EAGAIN)
"""All that C++ says when the system gives it no thread, for lack of memory or by a limit; about peers it says more."""


class CommunicatorError(GhostServeError):
    """A collective failed because a peer is gone (or the group was never bound, or has been released)."""


def make_communicator(device: str, world_size: int) -> "Communicator":
    """The communicator for ranks that compute on `device`: "cpu" or "cuda"."""
    if device == "cuda":
        from ghostserve.engine.nccl import NcclCommunicator

        return NcclCommunicator(world_size)
    from ghostserve.engine.gloo import GlooCommunicator

    return GlooCommunicator(world_size)


class Communicator(ABC):
    """All-reduce and gather among the ranks of one epoch."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.rank = -1
        self.in_collective = False
        """The main thread is in a collective, or waits for one."""
        self._bound = False
        self._silent = False
        self._store: Store | None = None

    # ---- membership

    def bind(self, *, rank: int, epoch: int, store_port: int, secret: str) -> None:
        """Join the group of `epoch`; its members know `secret`. Raises `CommunicatorError` if one does not come."""
        self.unbind()
        self.rank = rank
        self.in_collective = True
        try:
            self._store = self._guard(connect(store_port), epoch, secret)
            self._connect(PrefixStore(f"epoch-{epoch}", self._store), epoch)
        except (RuntimeError, OSError) as error:
            raise_own(error)
            raise CommunicatorError(f"rank {rank} could not join epoch {epoch}: {error}") from error
        finally:
            self.in_collective = False
        self._bound = True

    def unbind(self) -> None:
        """Leave the group. Closing the connections is also what frees peers that wait for us in a collective."""
        self._bound = False
        self._disconnect()
        self._store = None
        # The rendezvous' keys carry this counter. A join that failed has moved it on without a group to destroy: the
        # next join would wait for keys that no newcomer ever writes.
        dist.distributed_c10d._world.group_count = 0

    def release(self, epoch: int) -> None:
        """Any thread: the group is over, `epoch` comes next. Cuts off what hangs, where peers that leave don't."""
        return

    def settle(self) -> None:
        """Main thread: wait until what was launched is done, and raise `CommunicatorError` if it may be garbage."""
        return

    def warm_up(self) -> None:
        """Before there is any peer: what can be done once instead of in the next `bind`."""
        return

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Collectives do nothing in here: shapes are right, values mean nothing. For trials of the model."""
        before, self.rank, self._silent = self.rank, 0, True
        try:
            yield
        finally:
            self.rank, self._silent = before, False

    @property
    def waiting(self) -> bool:
        """Any thread: this rank waits for its peers and not they for it."""
        return self.in_collective

    # ---- collectives

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            self._run(lambda: self._sum(tensor))
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
        if self._silent:
            return
        if not self._bound:
            raise CommunicatorError("the group was released: no collective may start before the next epoch")
        self.in_collective = True
        try:
            collective()
        except RuntimeError as error:
            raise_own(error)
            raise CommunicatorError(str(error)) from error
        finally:
            self.in_collective = False

    # ---- the siblings' part

    def _guard(self, store: Store, epoch: int, secret: str) -> Store:
        """What of the store that anybody may reach is only the members'."""
        return SealedStore(store, secret)

    @abstractmethod
    def _connect(self, store: Store, epoch: int) -> None:
        """Make the process group; `RuntimeError` if that fails."""

    def _sum(self, tensor: torch.Tensor) -> None:
        """The collective itself: the sum over the ranks, in place."""
        dist.all_reduce(tensor)

    def _disconnect(self) -> None:
        """Destroy the process group, if there is one, whatever state it is in."""
        if dist.is_initialized():
            dist.destroy_process_group()


def raise_own(error: Exception) -> None:
    """Raise `error` again if it is this process's own fault (its device is broken or full, the system refuses it
    files, memory or threads) and no peer's: else peers would be asked again and again for what this one can't do.
    """
    if isinstance(error, torch.AcceleratorError | torch.OutOfMemoryError):
        raise error
    if str(error) == _NO_THREAD or any(reason in str(error) for reason in _REFUSED):
        raise error
