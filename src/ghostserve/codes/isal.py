"""ISA-L through ctypes, from the shared library that the pyeclib wheel carries."""

import ctypes
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ghostserve.errors import GhostServeError

__all__ = ["Isal"]

Bytes = NDArray[np.uint8]
_TABLE_BYTES = 32  # per coefficient


class Isal:
    """The calls of ISA-L that an erasure code needs. Raises `GhostServeError` where it is not installed."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(_find()))

    def cauchy(self, n: int, k: int) -> Bytes:
        """`gf_gen_cauchy1_matrix`: uint8 (n + k, n), the identity above the parity rows."""
        matrix = np.zeros((n + k, n), np.uint8)
        self._library.gf_gen_cauchy1_matrix(_pointer(matrix), ctypes.c_int(n + k), ctypes.c_int(n))
        return matrix

    def prepare(self, matrix: Bytes, inputs: Sequence[Bytes], outputs: Sequence[Bytes]) -> Callable[[], None]:
        """A call of `ec_encode_data` that writes `matrix` times `inputs` to `outputs`.

        `matrix` is uint8 (outputs, inputs); shards are contiguous and of one size.
        """
        rows, columns = matrix.shape
        size = inputs[0].size
        tables = np.zeros(_TABLE_BYTES * rows * columns, np.uint8)
        source = np.ascontiguousarray(matrix)
        self._library.ec_init_tables(ctypes.c_int(columns), ctypes.c_int(rows), _pointer(source), _pointer(tables))
        read = (ctypes.c_void_p * columns)(*(_pointer(shard) for shard in inputs))
        written = (ctypes.c_void_p * rows)(*(_pointer(shard) for shard in outputs))
        arguments = (
            ctypes.c_int(size),
            ctypes.c_int(columns),
            ctypes.c_int(rows),
            _pointer(tables),
            read,
            written,
        )

        # The default argument keeps the arrays alive that ISA-L sees only as addresses.
        def encode(alive: object = (tables, inputs, outputs)) -> None:
            self._library.ec_encode_data(*arguments)

        return encode


def _find() -> Path:
    hint = "install it with `pip install pyeclib` (on Linux its wheel carries ISA-L)"
    try:
        installed = files("pyeclib") or []
    except PackageNotFoundError:
        raise GhostServeError(f"ISA-L is needed to compare with, and pyeclib is not installed: {hint}") from None
    found = [Path(str(file.locate())) for file in installed if file.name.startswith("libisal")]
    if not found:
        raise GhostServeError(f"pyeclib is installed, but carries no libisal: {hint}")
    return found[0]


def _pointer(array: Bytes) -> ctypes.c_void_p:
    if not array.flags.c_contiguous:
        raise GhostServeError(f"ISA-L needs contiguous shards, not strides {array.strides} of {array.shape}")
    return ctypes.c_void_p(array.ctypes.data)
