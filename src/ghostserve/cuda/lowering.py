"""From a plan to the source of a Triton kernel, with everything that is known of the plan as constants.

Position-wise plans load all their inputs, then build each output bit-plane by bit-plane, from the highest bit of the
coefficients down: double what there is, xor the inputs whose coefficient has the bit (Horner's rule).

Row-diagonal plans (Corbett et al., FAST 2004) work on all symbols of a slot at once, one a lane. What a lane needs of
other rows it loads again, from the cache closest to it, so that nothing but a few sums is kept in registers. Where two
columns are lost the lanes stand in the order of the zig-zag: what is there of lane k's diagonal and of the row before
it adds up to the difference of two neighbours in the chain, and a scan adds up the differences.
"""

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes.base import Plan, RowDiagonal, Step
from ghostserve.cuda.writer import Addressing, KernelWriter
from ghostserve.errors import UnsupportedCodeError

__all__ = ["LARGEST_PRIME", "is_zigzag", "lanes", "lower", "simplest"]

LARGEST_PRIME = 17
"""With more symbols a slot, one a lane, a thread block's tile would be too large."""

_LOADED = "tl.debug_barrier()"
# What is loaded again must find the first load's bytes in the cache, not the first load still under way. With three
# loads of everything, as the zig-zag has them, waiting costs more than it brings.


def simplest(plan: Plan) -> Plan:
    """A row-diagonal plan that needs no diagonal, as a position-wise one: every output is the xor of all inputs."""
    if plan.array is None or None in plan.array.columns:
        return plan
    count = len(plan.inputs)
    terms = tuple((p, 1) for p in range(count))
    return Plan(plan.inputs, plan.outputs, 1, tuple(Step(count + k, terms) for k in range(len(plan.outputs))))


def lower(plan: Plan, addressing: Addressing, *, checksums: bool) -> str:
    """The source of a kernel `run_plan` that runs `plan`.

    Raises `UnsupportedCodeError` for several symbols a slot without a row-diagonal structure, or with a prime above
    `LARGEST_PRIME`.
    """
    writer = KernelWriter(plan, addressing, checksums=checksums)
    if plan.rows == 1:
        _horner(writer, plan)
    elif plan.array is None:
        raise UnsupportedCodeError(f"the GPU kernels know no code with {plan.rows} symbols a slot but rdp")
    elif plan.array.prime > LARGEST_PRIME:
        raise UnsupportedCodeError(
            f"on a GPU rdp serves at most {LARGEST_PRIME - 1} data shards (prime {LARGEST_PRIME}), this plan has prime"
            f" {plan.array.prime}: use rs:2"
        )
    elif is_zigzag(plan):
        _zigzag(writer, plan, plan.array)
    else:
        _diagonals(writer, plan, plan.array)
    return writer.source()


def is_zigzag(plan: Plan) -> bool:
    """Are two columns of a row-diagonal plan lost?"""
    return plan.array is not None and len(_unknown(plan)) == 2


def lanes(plan: Plan) -> NDArray[np.int32]:
    """What a kernel must know of its lanes, int32 (4, rows): row, diagonal, row before, in the second chain (0 or 1)?

    Lanes stand in the order of their rows, but where two columns are lost in the order of the zig-zag's two chains. A
    chain's first lane has no row before it: row `rows` is where nothing is.
    """
    if plan.array is None or not is_zigzag(plan):
        return np.array([range(plan.rows), range(plan.rows), [plan.rows] * plan.rows, [0] * plan.rows], np.int32)
    prime = plan.array.prime
    found = []
    a, b = (_column(plan.array, position) for position in _unknown(plan))
    for chain, (first, second) in enumerate(((a, b), (b, a))):
        # This diagonal misses column `first`, so its only unknown symbol is column `second`'s.
        d, before = (first - 1) % prime, plan.rows
        while d != prime - 1:
            row = (d - second) % prime
            found.append((row, d, before, chain))
            d, before = (row + first) % prime, row
    return np.array(found, np.int32).T


def _horner(writer: KernelWriter, plan: Plan) -> None:
    writer.place("here", "0")
    for position in range(writer.num_inputs):
        writer.load(position, f"x{position}", "here")
    for step in plan.steps:
        value = f"x{step.target}"
        source, coefficient = step.terms[0] if len(step.terms) == 1 else (0, 0)
        if coefficient == 1:
            writer.add(f"{value} = x{source}")
            writer.store(step.target, value, "here", copy_of=source)
            continue
        started = False
        for bit in range(7, -1, -1):
            terms = " ^ ".join(f"x{source}" for source, c in step.terms if c >> bit & 1)
            if started:
                terms = f"double({value})" + (f" ^ {terms}" if terms else "")
            if terms:
                writer.add(f"{value} = {terms}")
                started = True
        if not started:
            writer.add(f"{value} = tl.zeros([SLOTS, WORDS], tl.uint32)")
        writer.store(step.target, value, "here")


def _diagonals(writer: KernelWriter, plan: Plan, array: RowDiagonal) -> None:
    """All columns but at most one are there; that one comes from the rows. Lane r has row r and diagonal r."""
    unknown = _unknown(plan)
    known = _known(plan)
    writer.place("row", "lane")
    writer.add("row_sum = tl.zeros([SLOTS * LANES, WORDS], tl.uint32)", "diagonal_sum = row_sum")
    for position in known:
        writer.load(position, "x", "row")
        writer.add("row_sum ^= x")
    for position in unknown:
        writer.store(position, "row_sum", "row")
    writer.add(_LOADED)
    for position in known:
        _add_diagonal(writer, array, position, _column(array, position), "lane")
    for position in unknown:
        # This column is not in memory yet: its symbol on the diagonal is its row's sum, loaded again.
        for other in known:
            _add_diagonal(writer, array, other, _column(array, position), "lane")
    writer.store(array.columns.index(None), "diagonal_sum", "row")


def _zigzag(writer: KernelWriter, plan: Plan, array: RowDiagonal) -> None:
    """Two columns are lost, the diagonals are there."""
    writer.add("row_of = tl.load(lanes + lane)", "diagonal_of = tl.load(lanes + LANES + lane)")
    writer.add("before = tl.load(lanes + 2 * LANES + lane)", "late = (tl.load(lanes + 3 * LANES + lane) == 1)[:, None]")
    writer.place("row", "row_of")
    writer.place("before", "before", absent="before == LANES", hashed=False)
    writer.place("diagonal", "diagonal_of")
    writer.add("row_sum = tl.zeros([SLOTS * LANES, WORDS], tl.uint32)")
    writer.load(array.columns.index(None), "diagonal_sum", "diagonal")
    for position in _known(plan):
        writer.load(position, "x", "row")
        writer.add("row_sum ^= x")
    for position in _known(plan):
        writer.load(position, "x", "before", hashed=False)
        writer.add("diagonal_sum ^= x")
        _add_diagonal(writer, array, position, _column(array, position), "diagonal_of")
    one, two = _unknown(plan)
    writer.add(
        # Lanes of the second chain begin anew: what the first has added up is taken away again.
        "chained = tl.reshape(diagonal_sum, [SLOTS, LANES, WORDS])",
        "early = tl.reshape(tl.where(late, 0, diagonal_sum), [SLOTS, LANES, WORDS])",
        "taken = tl.broadcast_to(tl.xor_sum(early, 1, keep_dims=True), [SLOTS, LANES, WORDS])",
        "scanned = tl.reshape(tl.associative_scan(chained, 1, xor), [SLOTS * LANES, WORDS])",
        "second = scanned ^ tl.where(late, tl.reshape(taken, [SLOTS * LANES, WORDS]), 0)",
        "first_ = second ^ row_sum",
        "y_one = tl.where(late, second, first_)",
        "y_two = tl.where(late, first_, second)",
    )
    writer.store(one, "y_one", "row")
    writer.store(two, "y_two", "row")


def _add_diagonal(writer: KernelWriter, array: RowDiagonal, position: int, column: int, diagonal: str) -> None:
    """Add, of the shard at `position`, the symbols in the rows where `column` crosses the lanes' diagonals."""
    prime = array.prime
    name = f"c{column}"
    writer.add(f"{name} = ({diagonal} + {(prime - column) % prime}) % {prime}")
    writer.place(name, name, absent=f"{name} == {prime - 1}", hashed=False)
    writer.load(position, "x", name, hashed=False)
    writer.add("diagonal_sum ^= x")


def _known(plan: Plan) -> list[int]:
    assert plan.array is not None
    return [p for p in range(len(plan.inputs)) if plan.array.columns[p] is not None]


def _unknown(plan: Plan) -> list[int]:
    """Positions of the outputs that have a column."""
    assert plan.array is not None
    first = len(plan.inputs)
    return [p for p in range(first, first + len(plan.outputs)) if plan.array.columns[p] is not None]


def _column(array: RowDiagonal, position: int) -> int:
    column = array.columns[position]
    assert column is not None
    return column
