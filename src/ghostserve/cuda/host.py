"""Shared host memory that a device reads and writes in place."""

from collections.abc import Iterator
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ghostserve.cuda.interface import Runtime
from ghostserve.errors import CudaError
from ghostserve.parity.memory import SharedRegion

__all__ = ["RegisteredRegion"]

PAGE = 4096
PIECE_BYTES = 1 << 30


class RegisteredRegion:
    """Pins part of a shared region for a device, until `close`. Other processes pin it for themselves.

    Where the driver refuses one large range it is pinned in pieces. Kernels may cross from piece to piece, the copy
    engine may not: cut its copies with `split`.
    """

    def __init__(
        self,
        runtime: Runtime,
        region: SharedRegion,
        *,
        offset: int = 0,
        nbytes: int | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        """Pin `nbytes` bytes (None: to the end) from `offset` on, a multiple of the page size (4096).

        `region` is mapped at least as long as this is open. Raises `ValueError` for bytes outside the region, and
        `CudaError` with nothing left pinned.
        """
        size = region.nbytes - offset if nbytes is None else nbytes
        if offset % PAGE or piece_bytes % PAGE or piece_bytes <= 0:
            raise ValueError(f"offset {offset} and pieces of {piece_bytes} bytes must be multiples of {PAGE}")
        if size <= 0 or not 0 <= offset <= region.nbytes - size:
            raise ValueError(f"bytes {offset}..{offset + size} are not inside a region of {region.nbytes} bytes")
        self._runtime = runtime
        # The view keeps the mapping alive when the region is closed first.
        view = region.array[offset : offset + size]
        self._view: NDArray[np.uint8] | None = view
        self._address = int(view.ctypes.data)
        self._nbytes = size
        self._pieces = self._register(piece_bytes)

    @property
    def address(self) -> int:
        """Of the first pinned byte, for this process and for the device."""
        return self._address

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def pieces(self) -> tuple[tuple[int, int], ...]:
        """What is pinned: (address, nbytes), ascending and without gaps; empty once closed."""
        return tuple(self._pieces)

    def split(self, address: int, nbytes: int) -> Iterator[tuple[int, int]]:
        """Cut a span of this region where it crosses pieces: (address, nbytes), in order."""
        if not self.address <= address <= address + nbytes <= self.address + self.nbytes:
            raise ValueError(f"{nbytes} bytes at {address:#x} are not inside {self.nbytes} bytes at {self.address:#x}")
        for start, size in self._pieces:
            first, last = max(start, address), min(start + size, address + nbytes)
            if first < last:
                yield first, last - first

    def close(self) -> None:
        """Unpin. The device must be done with it. Every piece is tried; the first failure is raised. Idempotent."""
        errors = []
        while self._pieces:
            address, _ = self._pieces.pop()
            try:
                self._runtime.unregister(address)
            except CudaError as error:
                errors.append(error)
        self._view = None
        if errors:
            raise errors[0]

    def __enter__(self) -> "RegisteredRegion":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _register(self, piece_bytes: int) -> list[tuple[int, int]]:
        try:
            self._runtime.register(self._address, self._nbytes)
        except CudaError:
            if self._nbytes <= piece_bytes:
                raise
        else:
            return [(self._address, self._nbytes)]
        pieces: list[tuple[int, int]] = []
        try:
            for start in range(0, self._nbytes, piece_bytes):
                piece = (self._address + start, min(piece_bytes, self._nbytes - start))
                self._runtime.register(*piece)
                pieces.append(piece)
        except BaseException:
            for address, _ in pieces:
                self._runtime.unregister(address)
            raise
        return pieces
