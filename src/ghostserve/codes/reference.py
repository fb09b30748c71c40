"""The oracles: slow, readable, and independent of how plans are made and run.

`run_reference` runs a plan with table look-ups: the oracle of the backends. The `*_parity` functions compute
parity from a code's definition, without plans and without the tables of `gf256`: the oracles of the plans.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes.base import Code, Plan, stripe_bytes
from ghostserve.codes.gf256 import POLYNOMIAL, mul_table
from ghostserve.errors import UnsupportedCodeError

__all__ = ["naive_parity", "rdp_parity", "rs_parity", "run_reference", "xor_parity"]

Bytes = NDArray[np.uint8]


def run_reference(plan: Plan, inputs: Sequence[Bytes]) -> list[Bytes]:
    """Run `plan` over its inputs, each uint8 (S, B); returns its outputs, each uint8 (S, B)."""
    slots, slot_bytes = inputs[0].shape if inputs else (0, plan.rows)
    table = mul_table()
    symbols = [symbol for shard in inputs for symbol in _symbols(shard, plan.rows)]
    width = slot_bytes // plan.rows
    symbols += [np.zeros((slots, width), np.uint8) for _ in range(len(plan.outputs) * plan.rows)]
    for step in plan.steps:
        total = np.zeros((slots, width), np.uint8)
        for source, coefficient in step.terms:
            total ^= table[coefficient][symbols[source]]
        symbols[step.target] = total
    first = len(inputs) * plan.rows
    return [_shard(symbols[at : at + plan.rows]) for at in range(first, len(symbols), plan.rows)]


def naive_parity(code: Code, data: Sequence[Bytes]) -> list[Bytes]:
    """The K parity shards of N data shards, all uint8 (S, B), from the definition of `code`."""
    if code.name == "xor":
        return xor_parity(data)
    if code.name == "rdp":
        return rdp_parity(data)
    if code.name == "rs":
        return rs_parity(data, code.k)
    if code.name == "copy":
        return [shard.copy() for shard in data]
    raise UnsupportedCodeError(f"no reference for code {code.name!r}; there is one for xor, rdp, rs and copy")


def xor_parity(data: Sequence[Bytes]) -> list[Bytes]:
    """One shard: the xor of all."""
    return [np.bitwise_xor.reduce(np.stack(data), axis=0)]


def rs_parity(data: Sequence[Bytes], k: int) -> list[Bytes]:
    """`k` shards: the matrix-vector product with 1 / (i xor j), element by element on Python ints."""
    n = len(data)
    shape = data[0].shape
    flat = [shard.reshape(-1).tolist() for shard in data]
    parity = []
    for i in range(n, n + k):
        row = [_peasant_inverse(i ^ j) for j in range(n)]
        total = [0] * len(flat[0])
        for coefficient, shard in zip(row, flat, strict=True):
            total = [t ^ _peasant_mul(coefficient, x) for t, x in zip(total, shard, strict=True)]
        parity.append(np.array(total, dtype=np.uint8).reshape(shape))
    return parity


def rdp_parity(data: Sequence[Bytes]) -> list[Bytes]:
    """Row parity and diagonal parity, from the full array with its unused columns written out as zeros."""
    n = len(data)
    p = next(p for p in (5, 17, 257) if n <= p - 1)
    slots, slot_bytes = data[0].shape
    array = np.zeros((p - 1, p, slots, slot_bytes // (p - 1)), np.uint8)
    for column, shard in enumerate(data):
        array[:, column] = np.stack(_symbols(shard, p - 1))
    for row in range(p - 1):
        array[row, p - 1] = np.bitwise_xor.reduce(array[row, : p - 1], axis=0)
    diagonals = np.zeros((p, *array.shape[2:]), np.uint8)
    for row in range(p - 1):
        for column in range(p):
            diagonals[(row + column) % p] ^= array[row, column]
    return [_shard(list(array[:, p - 1])), _shard(list(diagonals[: p - 1]))]


def _symbols(shard: Bytes, rows: int) -> list[Bytes]:
    """The symbols of a shard's slots, uint8 (S, B): `rows` of uint8 (S, B / rows)."""
    slots, slot_bytes = shard.shape
    stripe = stripe_bytes(slot_bytes, rows)
    stretches = shard.reshape(slots, slot_bytes // (rows * stripe), rows, stripe)
    return [stretches[:, :, row].reshape(slots, slot_bytes // rows) for row in range(rows)]


def _shard(symbols: list[Bytes]) -> Bytes:
    """What `_symbols` took apart."""
    rows, (slots, width) = len(symbols), symbols[0].shape
    stripe = stripe_bytes(rows * width, rows)
    return np.stack([s.reshape(slots, width // stripe, stripe) for s in symbols], axis=2).reshape(slots, rows * width)


def _peasant_mul(a: int, b: int) -> int:
    """Carry-less product, reduced bit by bit."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= POLYNOMIAL
        b >>= 1
    return product


def _peasant_inverse(a: int) -> int:
    return next(x for x in range(1, 256) if _peasant_mul(a, x) == 1)
