"""Reed-Solomon with a systematic Cauchy matrix.

Bloemer et al., "An XOR-Based Erasure-Resilient Coding Scheme", 1995.
"""

from ghostserve.codes.base import Code, Plan
from ghostserve.codes.builder import PlanBuilder
from ghostserve.codes.gf256 import inv, invert_matrix, mul

__all__ = ["ReedSolomonCode"]

_FIELD = 256


class ReedSolomonCode(Code):
    """Any K >= 1 with N + K <= 256. Position-wise.

    Parity shard i (id, N..N+K-1) is the sum over data shards j of j-th data times 1 / (i xor j), the matrix
    of ISA-L's `gf_gen_cauchy1_matrix`: parity is byte-identical with ISA-L's. Every square submatrix of a
    Cauchy matrix is regular, so any K lost shards can be rebuilt.
    """

    name = "rs"

    @classmethod
    def supports(cls, n: int, k: int) -> str | None:
        if n < 1 or k < 1:
            return f"rs needs at least 1 data and 1 parity shard, not {n} and {k}"
        if n + k > _FIELD:
            return f"rs serves at most {_FIELD} shards in all, not {n} data + {k} parity = {n + k}"
        return None

    def parity_row(self, shard: int) -> list[int]:
        """The N coefficients of parity shard `shard` (id N..N+K-1)."""
        return [inv(shard ^ j) for j in range(self.n)]

    def _encode_plan(self) -> Plan:
        parity = tuple(range(self.n, self.n + self.k))
        return self._rebuild_plan(parity, parity)

    def _rebuild_plan(self, lost: tuple[int, ...], wanted: tuple[int, ...]) -> Plan:
        rows = self._rows_over_survivors(lost)
        builder = PlanBuilder()
        for shard in wanted:
            row = rows[shard] if shard < self.n else self._fold(shard, lost, rows)
            builder.add((shard, 0), (((source, 0), c) for source, c in sorted(row.items())))
        return builder.build(wanted)

    def _rows_over_survivors(self, lost: tuple[int, ...]) -> dict[int, dict[int, int]]:
        """For each lost data shard, its coefficients over surviving data and the first surviving parity.

        Only the square of lost columns and as many parity rows is inverted (at most K x K): moving the known
        data to the parity's side leaves `square * lost = parity + rest * data`.
        """
        columns = [s for s in lost if s < self.n]
        data = [s for s in range(self.n) if s not in lost]
        parity = [s for s in range(self.n, self.n + self.k) if s not in lost][: len(columns)]
        matrix = {s: self.parity_row(s) for s in parity}
        inverse = invert_matrix([[matrix[s][c] for c in columns] for s in parity])
        rows = {}
        for column, weights in zip(columns, inverse, strict=True):
            row = dict(zip(parity, weights, strict=True))
            for j in data:
                row[j] = _dot(weights, [matrix[s][j] for s in parity])
            rows[column] = row
        return rows

    def _fold(self, shard: int, lost: tuple[int, ...], rows: dict[int, dict[int, int]]) -> dict[int, int]:
        """A lost parity shard's coefficients over the survivors: its lost data replaced by their own rows."""
        result: dict[int, int] = {}
        for j, coefficient in enumerate(self.parity_row(shard)):
            for source, c in rows[j].items() if j in lost else ((j, 1),):
                result[source] = result.get(source, 0) ^ mul(coefficient, c)
        return result


def _dot(a: list[int], b: list[int]) -> int:
    total = 0
    for x, y in zip(a, b, strict=True):
        total ^= mul(x, y)
    return total
