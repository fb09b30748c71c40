"""The links between ranks on the CPU: what an epoch's groups compute with, and how another thread cuts that off."""

import logging
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ghostserve.vllm.gate import ReleasedError
from ghostserve.vllm.shared_reduce import SharedReduce, meet

__all__ = ["HostLinks"]

log = logging.getLogger("vllm.ghostserve.worker")


class HostLinks:
    """The same as `NcclLinks`, for shared memory. A collective that is cut off raises: no garbage gets through."""

    clean_cut = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._released = 0
        self._epoch = 0
        self._open: list[SharedReduce] = []

    def open(self, epoch: int, groups: Iterable[Any], device: torch.device) -> None:
        """`groups`, vLLM's coordinators, are up for `epoch`: from here on they compute through shared memory.

        All ranks call this together. Raises `ReleasedError` if the epoch was released in the meantime.
        """
        self._close()
        found = []
        for group in groups:
            communicator = group.device_communicator
            if communicator is None or group.world_size == 1:
                continue
            reduce = meet(group)
            if reduce is None:
                log.info("%s keeps to torch.distributed: its ranks can't map each other's memory", group.unique_name)
                continue
            communicator.dist_module = reduce
            found.append(reduce)
        with self._lock:
            self._epoch, self._open = epoch, found
        if self._released > epoch:
            self.cut(self._released)
            raise ReleasedError(f"epoch {epoch} was released at epoch {self._released}")

    def cut(self, epoch: int) -> None:
        """Nothing of an epoch below `epoch` counts any more: end its collectives, here and at all peers."""
        with self._lock:
            self._released = max(self._released, epoch)
            if self._epoch < self._released:
                for reduce in self._open:
                    reduce.break_off()

    def settle(self) -> None:
        """The epoch is over, and nothing computes any more: give its memory back."""
        self._close()

    def alone(self) -> AbstractContextManager[None]:
        """A newcomer's warm-up runs no collectives on the CPU."""
        return nullcontext()

    @property
    def waiting(self) -> bool:
        """Unknown: the main thread's stack says it."""
        return False

    def _close(self) -> None:
        with self._lock:
            while self._open:
                self._open.pop().close()
