"""From a plan to the source of a Triton kernel, with everything that is known of the plan as constants.

Position-wise plans load all their inputs, then build each output bit-plane by bit-plane, from the highest bit of the
coefficients down: double what there is, xor the inputs whose coefficient has the bit (Horner's rule).

Row-diagonal plans (Corbett et al., FAST 2004) go column by column, all symbols of a slot at once: a thread keeps the
sums of the rows and of the diagonals of its few bytes in registers, so everything is read once. Two lost columns come
out of these sums by the paper's zig-zag, a chain of xors between registers.
"""

from ghostserve.codes.base import Plan, RowDiagonal, Step
from ghostserve.cuda.writer import Addressing, KernelWriter
from ghostserve.errors import UnsupportedCodeError

__all__ = ["LARGEST_PRIME", "lower", "simplest"]

LARGEST_PRIME = 17
"""The sums of more rows and diagonals don't fit a thread's registers."""


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
    else:
        _row_diagonal(writer, plan, plan.array)
    return writer.source()


def _horner(writer: KernelWriter, plan: Plan) -> None:
    writer.place("here", "0")
    for position in range(writer.num_inputs):
        writer.load(position, f"x{position}", "here")
    for step in plan.steps:
        value = f"x{step.target}"
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


def _row_diagonal(writer: KernelWriter, plan: Plan, array: RowDiagonal) -> None:
    symbols, prime = range(plan.rows), array.prime
    for r in symbols:
        writer.place(f"s{r}", str(r))
    # The last diagonal is nobody's: its sum is never used.
    rows, diagonals = _Sums(writer, "row", plan.rows), _Sums(writer, "diagonal", plan.rows)
    diagonal_shard = array.columns.index(None)
    known = [p for p in range(writer.num_inputs) if p != diagonal_shard]
    lost = [p for p in range(writer.num_inputs, writer.positions) if p != diagonal_shard]
    for position in range(writer.num_inputs):
        for r in symbols:
            writer.load(position, f"x{r}", f"s{r}")
        for r in symbols:
            if position == diagonal_shard:
                diagonals.add(r, f"x{r}")
            else:
                rows.add(r, f"x{r}")
                diagonals.add((r + _column(array, position)) % prime, f"x{r}")
    assert known, "every row-diagonal plan reads a column"
    if len(lost) == 2:
        _zigzag(writer, array, (lost[0], lost[1]), rows, diagonals)
        return
    for position in lost:
        for r in symbols:
            writer.store(position, rows[r], f"s{r}")
            diagonals.add((r + _column(array, position)) % prime, rows[r])
    for d in symbols:
        writer.store(diagonal_shard, diagonals[d], f"s{d}")


def _zigzag(writer: KernelWriter, array: RowDiagonal, lost: tuple[int, int], rows: "_Sums", diagonals: "_Sums") -> None:
    """A diagonal that misses one lost column gives a symbol of the other, its row one of the first, and so on."""
    for one, other in (lost, lost[::-1]):
        d, before = (_column(array, one) - 1) % array.prime, ""
        while d != array.prime - 1:
            r = (d - _column(array, other)) % array.prime
            writer.add(f"y{r} = {diagonals[d]}{before}", f"z{r} = {rows[r]} ^ y{r}")
            writer.store(other, f"y{r}", f"s{r}")
            writer.store(one, f"z{r}", f"s{r}")
            d, before = (r + _column(array, one)) % array.prime, f" ^ z{r}"


class _Sums:
    """`count` sums of symbols, a variable each."""

    def __init__(self, writer: KernelWriter, name: str, count: int) -> None:
        self._writer, self._name, self._count = writer, name, count
        self._begun: set[int] = set()

    def add(self, number: int, value: str) -> None:
        if number >= self._count:
            return
        self._writer.add(f"{self._name}{number} {'^=' if number in self._begun else '='} {value}")
        self._begun.add(number)

    def __getitem__(self, number: int) -> str:
        return f"{self._name}{number}"


def _column(array: RowDiagonal, position: int) -> int:
    column = array.columns[position]
    assert column is not None
    return column
