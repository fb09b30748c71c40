"""Row-Diagonal Parity (Corbett et al., "Row-Diagonal Parity for Double Disk Failure Correction", FAST 2004).

The array has p - 1 rows and, for a prime p, p columns that take part in the diagonals: data columns 0..p-2
(those past N - 1 are all zero and never touched) and the row parity as column p - 1. A row xors to zero over
the p columns. Symbol (row r, column c) lies on diagonal (r + c) mod p; the diagonal parity shard holds
diagonals 0..p-2 in its rows, and diagonal p - 1 is not stored. Every column misses one diagonal, (c - 1) mod
p, which is what lets a rebuild of two columns start.
"""

from collections.abc import Iterator
from dataclasses import replace

from ghostserve.codes.base import Code, Plan, RowDiagonal
from ghostserve.codes.builder import PlanBuilder, Symbol

__all__ = ["RdpCode"]

# Fermat primes: p - 1 rows are then a power of two and divide the bytes of a slot.
_PRIMES = (5, 17, 257)


class RdpCode(Code):
    """K = 2, 1 <= N <= 256: shard N is the row parity, shard N + 1 the diagonal parity.

    `p` is the smallest of 5, 17, 257 that is larger than N; a slot's bytes must be a multiple of p - 1. Plans
    are straight lines in which diagonals reuse the row parity, and each symbol of a double rebuild those
    before it: for N = p - 1 both take 2p^2 - 6p + 4 xors, the paper's optimum.
    """

    name = "rdp"

    def __init__(self, n: int, k: int = 2) -> None:
        super().__init__(n, k)
        self.p = next(p for p in _PRIMES if n < p)

    @classmethod
    def supports(cls, n: int, k: int) -> str | None:
        if not 1 <= n < _PRIMES[-1]:
            return f"rdp serves 1..{_PRIMES[-1] - 1} data shards, not {n}"
        if k != 2:
            return f"rdp has exactly 2 parity shards, not {k}; xor has 1, rs:K has any K"
        return None

    @property
    def rows(self) -> int:
        return self.p - 1

    def _encode_plan(self) -> Plan:
        parity = (self.n, self.n + 1)
        return self._rebuild_plan(parity, parity)

    def _rebuild_plan(self, lost: tuple[int, ...], wanted: tuple[int, ...]) -> Plan:
        plan = self._steps(lost, wanted)
        columns = tuple(None if s == self.n + 1 else self._column(s) for s in (*plan.inputs, *plan.outputs))
        return replace(plan, array=RowDiagonal(self.p, columns))

    def _steps(self, lost: tuple[int, ...], wanted: tuple[int, ...]) -> Plan:
        builder = PlanBuilder(self.rows)
        diagonal = self.n + 1
        columns = tuple(s for s in lost if s != diagonal)
        if not wanted:
            return builder.build(())
        if len(columns) == 2:
            self._zigzag(builder, *columns)
            return builder.build((*wanted, *(s for s in columns if s not in wanted)))
        for shard in columns:
            for row in range(self.rows):
                builder.add_xor((shard, row), self._row(row, without=shard))
        if diagonal in wanted:
            for d in range(self.rows):
                builder.add_xor((diagonal, d), self._diagonal(d))
            return builder.build((*wanted, *(s for s in columns if s not in wanted)))
        return builder.build(wanted)

    def _zigzag(self, builder: PlanBuilder, a: int, b: int) -> None:
        """Rebuild two of the p columns: a diagonal gives one, its row the other, and so on."""
        for first, second in ((a, b), (b, a)):
            # This diagonal misses `first`, so its only unknown symbol is in `second`.
            d = (self._column(first) - 1) % self.p
            while d != self.p - 1:
                row = (d - self._column(second)) % self.p
                known = (s for s in self._diagonal(d) if s != (second, row))
                builder.add_xor((second, row), (*known, (self.n + 1, d)))
                builder.add_xor((first, row), self._row(row, without=first))
                d = (row + self._column(first)) % self.p

    def _column(self, shard: int) -> int:
        return self.p - 1 if shard == self.n else shard

    def _row(self, row: int, *, without: int) -> Iterator[Symbol]:
        """The symbols of a row, data and row parity, but for one shard."""
        return ((shard, row) for shard in range(self.n + 1) if shard != without)

    def _diagonal(self, d: int) -> Iterator[Symbol]:
        """The symbols that lie on diagonal `d`, data and row parity."""
        for shard in range(self.n + 1):
            row = (d - self._column(shard)) % self.p
            if row != self.p - 1:
                yield shard, row
