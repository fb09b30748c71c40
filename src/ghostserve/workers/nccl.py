"""What every worker that talks NCCL has, whichever engine it belongs to."""

import threading
from collections import deque
from typing import Protocol

__all__ = ["DEFAULTS", "REQUIRED", "Moment", "Progress"]

REQUIRED = {
    # A lost peer is the coordinator's business: torch's watchdogs must neither tear this process down nor abort.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_PROPAGATE_ERROR": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    "TORCH_NCCL_BLOCKING_WAIT": "0",
}
"""The environment that a worker on CUDA must have."""

DEFAULTS = {
    # Sums inside the switch come in an order of its own; all ranks are on this host.
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_SOCKET_IFNAME": "lo",
}
"""What it has unless the user's environment says otherwise."""


class Moment(Protocol):
    """A CUDA event, as far as it is needed here."""

    def query(self) -> bool: ...


class Progress:
    """Whether the device stands in a collective: each is launched between two events."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[Moment, Moment]] = deque()
        self._lock = threading.Lock()

    def launched(self, before: Moment, after: Moment) -> None:
        with self._lock:
            self._pairs.append((before, after))
            if len(self._pairs) > 64:
                self._drop()

    def clear(self) -> None:
        with self._lock:
            self._pairs.clear()

    @property
    def in_collective(self) -> bool:
        """The oldest collective that has not ended has begun: the device waits for a peer (or moves the bytes)."""
        with self._lock:
            try:
                self._drop()
                return bool(self._pairs) and self._pairs[0][0].query()
            except RuntimeError:
                return False  # the device is broken: the main thread is about to find out, and to say what it is

    def _drop(self) -> None:
        while self._pairs and self._pairs[0][1].query():
            self._pairs.popleft()
