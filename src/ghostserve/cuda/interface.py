"""What the data path asks of a device: `CudaRuntime` gives it, and a twin over host memory in the tests."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

__all__ = ["Event", "Runtime", "Stream"]


class Event(Protocol):
    """A moment on a stream: `torch.cuda.Event`, or the fake's."""

    def record(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end_event: Any) -> float: ...


class Stream(Protocol):
    """A queue of device work: `torch.cuda.Stream`, or the fake's."""

    def wait_event(self, event: Any) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool: ...


class Runtime(Protocol):
    """Memory, copies and streams of one device. Everything that fails raises `CudaError` or a kind of it.

    Copies and fills are asynchronous: what they touch must live and stay put until the stream got past them.
    """

    @property
    def device(self) -> torch.device:
        """Whose memory and streams these are."""

    def copy(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Copy `nbytes` bytes; both sides are device, mapped peer or registered host memory."""

    def copy_many(self, copies: Iterable[tuple[int, int, int]], stream: Stream) -> None:
        """Many at once: (target, source, nbytes > 0) each."""

    def copy_rows(
        self, target: int, target_stride: int, source: int, source_stride: int, width: int, rows: int, stream: Stream
    ) -> None:
        """Copy `rows` rows of `width` bytes; row r begins `r * stride` bytes behind its side's address."""

    def fill(self, target: int, byte: int, nbytes: int, stream: Stream) -> None:
        """Set `nbytes` bytes of device or registered host memory to `byte` (0..255)."""

    def malloc(self, nbytes: int) -> int:
        """Take device memory; the address is a multiple of 256. Raises `DeviceMemoryError`."""

    def free(self, address: int) -> None:
        """Give back what `malloc` gave; waits for work that is under way on the device."""

    def memory(self) -> tuple[int, int]:
        """Bytes of the device's memory: (free, total)."""

    def register(self, address: int, nbytes: int) -> None:
        """Pin this process's host memory and map it for the device, which sees it at the same address."""

    def unregister(self, address: int) -> None:
        """Undo `register`, by the address that it was given."""

    def export(self, address: int) -> bytes:
        """A handle by which other processes `open` the memory at `address` (see `IpcHandle`)."""

    def open(self, handle: bytes) -> int:
        """Map another process's memory; its address here. Every `open` needs a `close`.

        The owner must not free it while it is open; that the owner dies does no harm. Raises `PeerAccessError`.
        """

    def close(self, handle: bytes) -> None:
        """Undo one `open` of this allocation."""

    def stream(self, *, low_priority: bool = False) -> Stream:
        """A stream that does not wait for the default stream, nor that for it."""

    def event(self, *, spins: bool = False) -> Event:
        """An event whose `synchronize` sleeps; to be woken takes some 0.1 ms. With `spins` it keeps its core busy."""

    def current_stream(self) -> Stream:
        """Torch's current stream of the device in this thread."""

    def use(self, stream: Stream) -> AbstractContextManager[Any]:
        """Make `stream` torch's current one in this thread: kernels are launched on it."""
