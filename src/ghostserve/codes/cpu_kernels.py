# mypy: allow-untyped-decorators, allow-subclassing-any, disable-error-code=import-untyped
# numba and llvmlite come without type hints.
"""All that numba compiles: a wide vector type, its few operations, and the kernels over it.

They stand in one file because numba's disk cache looks only at the file of the kernel to see if it is stale.

A kernel walks slots, then windows of `WIDTH` bytes within a symbol, and runs the whole program on each
window: what a step wrote is still in L1 when a later one reads it. The last window of a symbol is moved back
to end with it; the bytes it shares with the one before are computed twice, to the same values. Symbols must
be at least `WIDTH` bytes: a branch for shorter ones inside the loop costs a third of the speed.

A window may lie in stripes: with two of them in two parts that lie `gaps[0]` bytes apart, with four in two such pairs
that lie `gaps[1]` apart, and so on. numba compiles a kernel for each number of gaps; with none a window is
read in one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.datamodel import models
from numba.core.registry import cpu_target
from numba.extending import intrinsic, register_model

__all__ = ["SHORTEST_STRIPE", "WIDTH", "Walk", "has_affine", "run_affine", "run_horner", "sum_words"]

WIDTH = 256  # bytes in a window; LLVM splits it into the registers that the host has
SHORTEST_STRIPE = 16  # bytes: the smallest register

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_WIDE, _LANE = ir.VectorType(_I8, WIDTH), ir.VectorType(_I8, 64)

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


def _indices(start: int, count: int) -> Any:
    return ir.Constant(ir.VectorType(_I32, count), list(range(start, start + count)))


def _joined(builder: Any, parts: list[Any]) -> Any:
    while len(parts) > 1:
        both = _indices(0, 2 * parts[0].type.count)
        parts = [builder.shuffle_vector(a, b, both) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _stripes(builder: Any, address: Any, gaps: Any, count: int) -> list[Any]:
    """Pointers to the parts of the window at `address`, `gaps` a tuple of so many."""
    places = [address]
    for i in range(count):
        gap = builder.extract_value(gaps, i)
        places += [builder.add(place, gap) for place in places]
    kind = ir.VectorType(_I8, WIDTH >> count)
    return [builder.inttoptr(place, kind.as_pointer()) for place in places]


@intrinsic
def _load(typing: Any, address: Any, gaps: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _joined(
            builder, [builder.load(part, align=1) for part in _stripes(builder, args[0], args[1], gaps.count)]
        )

    return _window(types.int64, gaps), generate


@intrinsic
def _store(typing: Any, address: Any, gaps: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        parts = _stripes(builder, args[0], args[1], gaps.count)
        size = WIDTH // len(parts)
        for i, part in enumerate(parts):
            builder.store(builder.shuffle_vector(args[2], args[2], _indices(size * i, size)), part, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, gaps, _window), generate


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
    quads = ir.VectorType(_I64, _LANE.count // 8)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_LANE, [_LANE, _LANE, _I8])
        affine = builder.module.declare_intrinsic("llvm.x86.vgf2p8affineqb.512", (), kind)
        undefined = ir.Constant(quads, ir.Undefined)
        one = builder.insert_element(undefined, args[1], ir.Constant(_I32, 0))
        every = ir.Constant(ir.VectorType(_I32, _LANE.count // 8), None)
        matrix = builder.bitcast(builder.shuffle_vector(one, undefined, every), _LANE)
        lanes = [
            builder.shuffle_vector(args[0], args[0], _indices(i, _LANE.count)) for i in range(0, WIDTH, _LANE.count)
        ]
        return _joined(builder, [builder.call(affine, [lane, matrix, ir.Constant(_I8, 0)]) for lane in lanes])

    return _window(_window, types.uint64), generate


class Walk(NamedTuple):
    """How a kernel goes through a slot's symbols, `apart` bytes from one's first to the next one's.

    Through each in `steps` steps of `pitch` bytes, `window` of them at a time; what the module says of `gaps`.
    """

    rows: int
    apart: int
    steps: int
    window: int
    pitch: int
    gaps: tuple[int, ...]


@_jit
def _locate(addresses: Any, bases: Any, strides: Any, slot: int, walk: Any) -> None:
    """Fill in the address of every symbol in one slot."""
    for position in range(bases.shape[0]):
        start = bases[position] + slot * strides[position]
        for row in range(walk.rows):
            addresses[position * walk.rows + row] = start + row * walk.apart


@_jit
def run_horner(
    bases: Any,
    strides: Any,
    slots: int,
    walk: Walk,
    targets: Any,
    tops: Any,
    planes: Any,
    sources: Any,
) -> None:
    """Run a `HornerProgram`: per bit, double the sum, then xor the sources whose coefficient has the bit."""
    addresses = np.empty(bases.shape[0] * walk.rows, np.int64)
    for slot in range(slots):
        _locate(addresses, bases, strides, slot, walk)
        for window in range(0, walk.steps, walk.window):
            at = min(window, walk.steps - walk.window) * walk.pitch
            for step in range(targets.shape[0]):
                total = _zero()
                for bit in range(tops[step], -1, -1):
                    total = _double(total)
                    plane = step * 8 + bit
                    for term in range(planes[plane], planes[plane + 1]):
                        total = _xor(total, _load(addresses[sources[term]] + at, walk.gaps))
                _store(addresses[targets[step]] + at, walk.gaps, total)


@_jit
def run_affine(
    bases: Any,
    strides: Any,
    slots: int,
    walk: Walk,
    kinds: Any,
    targets: Any,
    starts: Any,
    sources: Any,
    matrices: Any,
) -> None:
    """Run an `AffineProgram`; groups of two targets with the same sources load each source once."""
    addresses = np.empty(bases.shape[0] * walk.rows, np.int64)
    for slot in range(slots):
        _locate(addresses, bases, strides, slot, walk)
        for window in range(0, walk.steps, walk.window):
            at = min(window, walk.steps - walk.window) * walk.pitch
            for group in range(kinds.shape[0]):
                terms = range(starts[group], starts[group + 1])
                first = _zero()
                second = _zero()
                if kinds[group] == 0:
                    for term in terms:
                        first = _xor(first, _load(addresses[sources[term]] + at, walk.gaps))
                elif kinds[group] == 1:
                    for term in terms:
                        value = _load(addresses[sources[term]] + at, walk.gaps)
                        first = _xor(first, _affine(value, matrices[term, 0]))
                else:
                    for term in terms:
                        value = _load(addresses[sources[term]] + at, walk.gaps)
                        first = _xor(first, _affine(value, matrices[term, 0]))
                        second = _xor(second, _affine(value, matrices[term, 1]))
                    _store(addresses[targets[group, 1]] + at, walk.gaps, second)
                _store(addresses[targets[group, 0]] + at, walk.gaps, first)


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
