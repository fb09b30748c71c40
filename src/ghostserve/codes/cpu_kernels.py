# mypy: allow-untyped-decorators, allow-subclassing-any, disable-error-code=import-untyped
# numba and llvmlite come without type hints.
"""All that numba compiles: a wide vector type, its few operations, and the kernels over it.

They stand in one file because numba's disk cache looks only at the file of the kernel to see if it is stale.

A kernel walks slots, then windows of `WIDTH` bytes within a symbol, and runs the whole program on each
window: what a step wrote is still in L1 when a later one reads it. The last window of a symbol is moved back
to end with it; the bytes it shares with the one before are computed twice, to the same values. Symbols must
be at least `WIDTH` bytes: a branch for shorter ones inside the loop costs a third of the speed.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.datamodel import models
from numba.core.registry import cpu_target
from numba.extending import intrinsic, register_model

__all__ = ["WIDTH", "has_affine", "run_affine", "run_horner", "sum_words"]

WIDTH = 256  # bytes in a window; LLVM splits it into the registers that the host has
_LANES = 64  # bytes in the widest register with an affine instruction

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_WIDE = ir.VectorType(_I8, WIDTH)

_F = TypeVar("_F", bound=Callable[..., Any])


def _jit(function: _F) -> _F:
    try:
        return cast(_F, njit(nogil=True, cache=True)(function))
    except RuntimeError:  # no folder to cache in can be written: compile once per process
        return cast(_F, njit(nogil=True)(function))


def has_affine() -> bool:
    """True if the CPU that numba compiles for has GFNI in 64-byte registers."""
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return {"+gfni", "+avx512bw"} <= set(features)


class _WindowType(types.Type):
    def __init__(self) -> None:
        super().__init__("ghostserve.window")


_window = _WindowType()


@register_model(_WindowType)
class _WindowModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, _WIDE)


@intrinsic
def _zero(typing: Any) -> Any:
    return _window(), lambda context, builder, signature, args: ir.Constant(_WIDE, None)


@intrinsic
def _xor(typing: Any, a: Any, b: Any) -> Any:
    return _window(_window, _window), lambda context, builder, signature, args: builder.xor(*args)


@intrinsic
def _load(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _WIDE.as_pointer()), align=1)

    return _window(types.int64), generate


@intrinsic
def _store(typing: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _WIDE.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, _window), generate


@intrinsic
def _word(typing: Any, address: Any, index: Any) -> Any:
    """The 32-bit word `index` of those that start at any address, as uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.gep(builder.inttoptr(args[0], _I32.as_pointer()), [args[1]])
        return builder.zext(builder.load(pointer, align=1), _I64)

    return types.uint64(types.int64, types.int64), generate


@intrinsic
def _byte(typing: Any, address: Any) -> Any:
    """The byte at an address, as uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.load(builder.inttoptr(args[0], _I8.as_pointer())), _I64)

    return types.uint64(types.int64), generate


@intrinsic
def _double(typing: Any, value: Any) -> Any:
    """Multiply every byte by x: shift left, and where a bit fell out subtract the polynomial."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(_WIDE, None)
        carried = builder.icmp_signed("<", args[0], zero)
        correction = builder.select(carried, ir.Constant(_WIDE, [0x1D] * WIDTH), zero)
        return builder.xor(builder.add(args[0], args[0]), correction)

    return _window(_window), generate


@intrinsic
def _affine(typing: Any, value: Any, matrix: Any) -> Any:
    """Multiply every byte, as a column of 8 bits, by an 8x8 bit matrix (GF2P8AFFINEQB)."""
    part = ir.VectorType(_I8, _LANES)
    quads = ir.VectorType(_I64, _LANES // 8)

    def indices(start: int, count: int) -> Any:
        return ir.Constant(ir.VectorType(_I32, count), list(range(start, start + count)))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(part, [part, part, _I8])
        affine = builder.module.declare_intrinsic("llvm.x86.vgf2p8affineqb.512", (), kind)
        undefined = ir.Constant(quads, ir.Undefined)
        one = builder.insert_element(undefined, args[1], ir.Constant(_I32, 0))
        every = ir.Constant(ir.VectorType(_I32, _LANES // 8), None)
        matrix = builder.bitcast(builder.shuffle_vector(one, undefined, every), part)
        pieces = [
            builder.call(
                affine,
                [builder.shuffle_vector(args[0], args[0], indices(i, _LANES)), matrix, ir.Constant(_I8, 0)],
            )
            for i in range(0, WIDTH, _LANES)
        ]
        while len(pieces) > 1:
            joined = indices(0, 2 * pieces[0].type.count)
            pairs = zip(pieces[::2], pieces[1::2], strict=True)
            pieces = [builder.shuffle_vector(low, high, joined) for low, high in pairs]
        return pieces[0]

    return _window(_window, types.uint64), generate


@_jit
def _locate(addresses: Any, bases: Any, strides: Any, slot: int, rows: int, size: int) -> None:
    """Fill in the address of every symbol in one slot."""
    for position in range(bases.shape[0]):
        start = bases[position] + slot * strides[position]
        for row in range(rows):
            addresses[position * rows + row] = start + row * size


@_jit
def run_horner(
    bases: Any,
    strides: Any,
    slots: int,
    size: int,
    rows: int,
    targets: Any,
    tops: Any,
    planes: Any,
    sources: Any,
) -> None:
    """Run a `HornerProgram`: per bit, double the sum, then xor the sources whose coefficient has the bit."""
    addresses = np.empty(bases.shape[0] * rows, np.int64)
    for slot in range(slots):
        _locate(addresses, bases, strides, slot, rows, size)
        for window in range(0, size, WIDTH):
            at = min(window, size - WIDTH)
            for step in range(targets.shape[0]):
                total = _zero()
                for bit in range(tops[step], -1, -1):
                    total = _double(total)
                    plane = step * 8 + bit
                    for term in range(planes[plane], planes[plane + 1]):
                        total = _xor(total, _load(addresses[sources[term]] + at))
                _store(addresses[targets[step]] + at, total)


@_jit
def run_affine(
    bases: Any,
    strides: Any,
    slots: int,
    size: int,
    rows: int,
    kinds: Any,
    targets: Any,
    starts: Any,
    sources: Any,
    matrices: Any,
) -> None:
    """Run an `AffineProgram`; groups of two targets with the same sources load each source once."""
    addresses = np.empty(bases.shape[0] * rows, np.int64)
    for slot in range(slots):
        _locate(addresses, bases, strides, slot, rows, size)
        for window in range(0, size, WIDTH):
            at = min(window, size - WIDTH)
            for group in range(kinds.shape[0]):
                terms = range(starts[group], starts[group + 1])
                first = _zero()
                second = _zero()
                if kinds[group] == 0:
                    for term in terms:
                        first = _xor(first, _load(addresses[sources[term]] + at))
                elif kinds[group] == 1:
                    for term in terms:
                        value = _load(addresses[sources[term]] + at)
                        first = _xor(first, _affine(value, matrices[term, 0]))
                else:
                    for term in terms:
                        value = _load(addresses[sources[term]] + at)
                        first = _xor(first, _affine(value, matrices[term, 0]))
                        second = _xor(second, _affine(value, matrices[term, 1]))
                    _store(addresses[targets[group, 1]] + at, second)
                _store(addresses[targets[group, 0]] + at, first)


@_jit
def sum_words(base: int, stride: int, size: int, weights: Any, seed: Any, sums: Any) -> None:
    """The multilinear hash of each slot into `sums` (see `checksum`)."""
    words = size // 4
    for slot in range(sums.shape[0]):
        start = base + slot * stride
        total = seed
        for word in range(words):
            total += weights[word] * _word(start, word)
        for at in range(4 * words, size):
            total += weights[words] * (_byte(start + at) << np.uint64(8 * (at % 4)))
        sums[slot] = total
