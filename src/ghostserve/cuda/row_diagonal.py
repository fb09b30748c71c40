"""Row-diagonal plans as Triton kernels (Corbett et al., "Row-Diagonal Parity ...", FAST 2004): everything is read once.

A thread keeps the sums of all rows and diagonals of its few bytes in registers, and visits the shards in the order of
their columns. Diagonals are registers that turn by one place after each visit, so a loop has the same body for every
column. The next shard's loads go to the registers of the one that was just added up: few registers, so many warps,
which wait for memory in turns. The row parity, column p - 1, is as good as column -1: it comes first. Two lost columns
come out of the sums by the paper's zig-zag, a chain of xors.
"""

from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes.base import Plan, RowDiagonal
from ghostserve.cuda.writer import KernelWriter
from ghostserve.errors import UnsupportedCodeError

__all__ = ["LARGEST_PRIME", "lower", "visits"]

LARGEST_PRIME = 17
"""The sums of more rows and diagonals don't fit a thread's registers."""


def visits(plan: Plan, paged: tuple[bool, ...]) -> NDArray[np.int32]:
    """What a kernel's loops go through, int32 (V,): the position of the shard that is read, -1 for a lost column.

    Behind each loop's last one stands another -1: it is fetched in vain.
    """
    return np.array([p for group in _groups(plan, paged) for p in (*group, -1)], dtype=np.int32)


def lower(writer: KernelWriter, plan: Plan, array: RowDiagonal) -> None:
    """Have `writer` run `plan`, whose structure is `array`.

    Raises `UnsupportedCodeError` for a prime above `LARGEST_PRIME`.
    """
    if array.prime > LARGEST_PRIME:
        raise UnsupportedCodeError(
            f"on a GPU rdp serves at most {LARGEST_PRIME - 1} data shards (prime {LARGEST_PRIME}), this plan has prime"
            f" {array.prime}: use rs:2"
        )
    kernel = _Kernel(writer, plan, array)
    kernel.read()
    lost = [p for p in range(writer.num_inputs, writer.positions) if array.columns[p] is not None]
    if len(lost) == 2:
        kernel.zigzag(lost[0], lost[1])
    else:
        kernel.rows_then_diagonals(lost)


def _groups(plan: Plan, paged: tuple[bool, ...]) -> list[list[int]]:
    """Known shards of one kind whose columns follow each other; a lost column between them is visited in vain."""
    assert plan.array is not None
    at = {_place(plan.array, p): p for p in range(len(plan.inputs)) if plan.array.columns[p] is not None}
    groups = [list(group) for _, group in groupby(sorted(at), key=lambda place: paged[at[place]])]
    return [[at.get(place, -1) for place in range(group[0], group[-1] + 1)] for group in groups]


def _place(array: RowDiagonal, position: int) -> int:
    column = array.columns[position]
    assert column is not None
    return -1 if column == array.prime - 1 else column


class _Kernel:
    """The lines of one column of units. `_diagonals[d]`: the variable that holds the sum of diagonal d."""

    def __init__(self, writer: KernelWriter, plan: Plan, array: RowDiagonal) -> None:
        self._writer, self._plan, self._array = writer, plan, array
        self._rows, self._prime = range(plan.rows), array.prime
        self._stored = array.columns.index(None)
        """Position of the shard that holds the diagonals."""
        self._diagonals = [f"e{d}" for d in range(array.prime)]

    def read(self) -> None:
        """Add up all that is there."""
        writer = self._writer
        writer.begin_symbols()
        for r in self._rows:
            writer.add(f"row{r} = tl.zeros([SLOTS, WORDS], tl.uint32)")
        writer.add(f"e{self._prime - 1} = tl.zeros([SLOTS, WORDS], tl.uint32)")
        if self._stored < writer.num_inputs:
            writer.find(str(self._stored), paged=writer.addressing.paged[self._stored])
            for r in self._rows:
                writer.add(f"e{r} = {writer.load_symbol(r)}")
            self._hash(str(self._stored), "e")
        else:
            for r in self._rows:
                writer.add(f"e{r} = tl.zeros([SLOTS, WORDS], tl.uint32)")
        first = 0
        for group in _groups(self._plan, writer.addressing.paged):
            self._visit(first, group)
            first += len(group) + 1

    def _visit(self, first: int, group: list[int]) -> None:
        writer = self._writer
        known = next(p for p in group if p >= 0)
        paged = writer.addressing.paged[known]
        place = _place(self._array, known) - group.index(known)
        self._turn(place)

        def fetch(visit: str) -> None:
            writer.add(f"p = tl.load(visits + {visit})", "there = (live & (tl.broadcast_to(p, [SLOTS]) >= 0))[:, None]")
            writer.find("tl.maximum(p, 0)", paged=paged)
            for r in self._rows:
                # What is fetched behind the last one is never looked at.
                writer.add(f"x{r} = {writer.load_symbol(r, mask='there', zeros=-1 in group)}")

        fetch(str(first))
        with writer.loop(f"for visit in range({first}, {first + len(group)})"):
            for r in self._rows:
                writer.add(f"row{r} ^= x{r}", f"e{r} ^= x{r}")
            self._hash("tl.load(visits + visit)", "x")
            fetch("visit + 1")
            writer.add("turned = e0", *(f"e{j} = e{j + 1}" for j in range(self._prime - 1)))
            writer.add(f"e{self._prime - 1} = turned")
        after = place + len(group)
        self._diagonals = [f"e{(d - after) % self._prime}" for d in range(self._prime)]

    def _turn(self, place: int) -> None:
        """Let e_j hold diagonal j + `place`, so that symbol j of that column lies on it."""
        names = [self._diagonals[(j + place) % self._prime] for j in range(self._prime)]
        self._writer.add(*(f"t{j} = {name}" for j, name in enumerate(names)))
        self._writer.add(*(f"e{j} = t{j}" for j in range(self._prime)))

    def rows_then_diagonals(self, lost: list[int]) -> None:
        """At most one column is lost: it is the rows' sums, and completes the diagonals."""
        for position in lost:
            self._store(position, [f"row{r}" for r in self._rows])
            for r in self._rows:
                at = (r + _place(self._array, position)) % self._prime
                self._writer.add(f"{self._diagonals[at]} ^= row{r}")
        self._store(self._stored, [self._diagonals[d] for d in self._rows])

    def zigzag(self, a: int, b: int) -> None:
        """A diagonal that misses one lost column gives a symbol of the other, its row one of the first, and so on."""
        prime, found = self._prime, {a: [""] * self._plan.rows, b: [""] * self._plan.rows}
        for one, other in ((a, b), (b, a)):
            d, before = (_place(self._array, one) - 1) % prime, ""
            while d != prime - 1:
                r = (d - _place(self._array, other)) % prime
                self._writer.add(f"y{other}_{r} = {self._diagonals[d]}{before}")
                self._writer.add(f"y{one}_{r} = row{r} ^ y{other}_{r}")
                found[one][r], found[other][r] = f"y{one}_{r}", f"y{other}_{r}"
                d, before = (r + _place(self._array, one)) % prime, f" ^ y{one}_{r}"
        for position, values in found.items():
            self._store(position, values)

    def _store(self, position: int, values: list[str]) -> None:
        writer = self._writer
        writer.find(str(position), paged=writer.addressing.paged[position])
        for r, value in enumerate(values):
            writer.add(f"out{r} = {value}", writer.store_symbol(r, f"out{r}"))
        self._hash(str(position), "out")

    def _hash(self, position: str, name: str) -> None:
        """Add the symbols in the variables `name`0, `name`1, ... to the checksum of the shard at `position`."""
        if self._writer.checksums:
            self._writer.add("part = tl.zeros([SLOTS, WORDS // GROUP], tl.uint64)")
            for r in self._rows:
                self._writer.add(f"part = hash_words({name}{r}, m{r}, part, WORDS, GROUP)")
            self._writer.add_part(position, "part")
