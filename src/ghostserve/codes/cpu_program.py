"""Plans flattened to index arrays.

A kernel compiled once runs any plan: a new erasure pattern at recovery time compiles nothing.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes.base import Plan, Step
from ghostserve.codes.gf256 import mul

__all__ = ["AffineProgram", "HornerProgram", "affine_program", "bit_matrix", "horner_program"]

# Unsigned, as numba would check signed indices for being negative.
Indices = NDArray[np.uint64]


class HornerProgram(NamedTuple):
    """For any host: terms by the bits of their coefficients.

    The sources of step s whose coefficient has bit b are sources[planes[8s + b] : planes[8s + b + 1]].
    """

    targets: Indices  # (steps,)
    tops: NDArray[np.int64]  # (steps,): the highest bit that some coefficient has
    planes: Indices  # (8 * steps + 1,)
    sources: Indices


class AffineProgram(NamedTuple):
    """For hosts with GFNI. Group g has terms starts[g]..starts[g+1]-1 and one or two targets.

    Kind 0: one target, all coefficients 1. Kind 1: one target. Kind 2: two targets with the same sources.
    """

    kinds: NDArray[np.int64]  # (groups,)
    targets: Indices  # (groups, 2)
    starts: Indices  # (groups + 1,)
    sources: Indices  # (terms,)
    matrices: NDArray[np.uint64]  # (terms, 2)


def horner_program(plan: Plan) -> HornerProgram:
    """Sort the terms of every step by the bits of their coefficients."""
    planes, sources = [0], []
    for step in plan.steps:
        for bit in range(8):
            sources += [source for source, coefficient in step.terms if coefficient >> bit & 1]
            planes.append(len(sources))
    tops = [max((c.bit_length() for _, c in step.terms), default=0) - 1 for step in plan.steps]
    return HornerProgram(
        _indices([step.target for step in plan.steps]),
        np.array(tops, np.int64),
        _indices(planes),
        _indices(sources),
    )


def affine_program(plan: Plan) -> AffineProgram:
    """Turn coefficients into bit matrices and pair neighbouring steps that read the same sources."""
    kinds, targets, starts, sources, matrices = [], [], [0], [], []
    for group in _groups(plan.steps):
        first, last = group[0], group[-1]
        kinds.append(0 if all(c == 1 for _, c in first.terms) and len(group) == 1 else len(group))
        targets.append((first.target, last.target))
        for (source, one), (_, two) in zip(first.terms, last.terms, strict=True):
            sources.append(source)
            matrices.append((bit_matrix(one), bit_matrix(two)))
        starts.append(len(sources))
    return AffineProgram(
        np.array(kinds, np.int64),
        _indices(targets).reshape(-1, 2),
        _indices(starts),
        _indices(sources),
        _indices(matrices).reshape(-1, 2),
    )


@cache
def bit_matrix(coefficient: int) -> int:
    """Multiplication by `coefficient` as GF2P8AFFINEQB wants it: byte 7 - i is the row that gives bit i."""
    images = [mul(coefficient, 1 << bit) for bit in range(8)]
    matrix = 0
    for i in range(8):
        row = sum((image >> i & 1) << bit for bit, image in enumerate(images))
        matrix |= row << 8 * (7 - i)
    return matrix


def _groups(steps: tuple[Step, ...]) -> list[tuple[Step, ...]]:
    groups: list[tuple[Step, ...]] = []
    for step in steps:
        if groups and len(groups[-1]) == 1 and _same_sources(groups[-1][0], step):
            groups[-1] = (*groups[-1], step)
        else:
            groups.append((step,))
    return groups


def _same_sources(a: Step, b: Step) -> bool:
    return len(a.terms) == len(b.terms) and all(x == y for (x, _), (y, _) in zip(a.terms, b.terms, strict=True))


def _indices(values: list[int] | list[tuple[int, int]]) -> Indices:
    return np.array(values, dtype=np.uint64)
