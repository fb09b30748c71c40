"""Arithmetic in GF(2^8) with polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11d) and generator 2.

This is the field of ISA-L, jerasure and most RAID-6 code (Plank, "A Tutorial on Reed-Solomon Coding", 1997).
Addition is xor. Elements are plain ints 0..255.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ghostserve.errors import UnsupportedCodeError

__all__ = ["POLYNOMIAL", "inv", "invert_matrix", "mul", "mul_table"]

POLYNOMIAL = 0x11D
_ORDER = 255  # of the multiplicative group


@cache
def _exp_log() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """exp[i] = 2^i for i in 0..509, twice around so that sums of two logs need no modulo; its inverse."""
    exp = [0] * (2 * _ORDER)
    log = [0] * 256
    value = 1
    for power in range(_ORDER):
        exp[power] = exp[power + _ORDER] = value
        log[value] = power
        value <<= 1
        if value & 0x100:
            value ^= POLYNOMIAL
    return tuple(exp), tuple(log)


def mul(a: int, b: int) -> int:
    """The product of two elements 0..255."""
    if a == 0 or b == 0:
        return 0
    exp, log = _exp_log()
    return exp[log[a] + log[b]]


def inv(a: int) -> int:
    """The multiplicative inverse of `a` in 1..255; raises `ZeroDivisionError` for 0."""
    if a == 0:
        raise ZeroDivisionError("0 has no inverse in GF(2^8)")
    exp, log = _exp_log()
    return exp[_ORDER - log[a]]


def invert_matrix(matrix: Sequence[Sequence[int]]) -> list[list[int]]:
    """The inverse of a square matrix of elements, by Gauss-Jordan elimination.

    Raises `UnsupportedCodeError` if the matrix is singular.
    """
    size = len(matrix)
    rows = [[*row, *(int(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next((r for r in range(column, size) if rows[r][column]), None)
        if pivot is None:
            raise UnsupportedCodeError(f"a {size}x{size} matrix over GF(2^8) is singular at column {column}")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        scale = inv(rows[column][column])
        rows[column] = [mul(scale, x) for x in rows[column]]
        for r in range(size):
            factor = rows[r][column]
            if r != column and factor:
                rows[r] = [x ^ mul(factor, y) for x, y in zip(rows[r], rows[column], strict=True)]
    return [row[size:] for row in rows]


@cache
def mul_table() -> NDArray[np.uint8]:
    """All products: uint8 (256, 256), read-only, `mul_table()[a, b] == mul(a, b)`."""
    table = np.array([[mul(a, b) for b in range(256)] for a in range(256)], dtype=np.uint8)
    table.flags.writeable = False
    return table
