"""A whole copy of every data shard: replication, told in the words of erasure codes."""

from collections.abc import Collection

from ghostserve.codes.base import Code, Plan
from ghostserve.codes.builder import PlanBuilder

__all__ = ["CopyCode"]


class CopyCode(Code):
    """K = N, any N >= 1: parity shard N + i is data shard i. Position-wise.

    Any number of data shards can be lost, as long as the copies of these are not: unlike the other codes it does
    not survive every loss of K shards. Rebuilding a shard reads nothing but its copy.
    """

    name = "copy"

    @classmethod
    def supports(cls, n: int, k: int) -> str | None:
        if n < 1:
            return f"copy needs at least 1 data shard, not {n}"
        if k != n:
            return f"copy of {n} data shards has exactly {n} parity shards, not {k}"
        return None

    def rebuilds(self, lost: Collection[int]) -> bool:
        return not any(s + self.n in lost for s in lost)

    def _encode_plan(self) -> Plan:
        copies = tuple(range(self.n, 2 * self.n))
        return self._rebuild_plan(copies, copies)

    def _rebuild_plan(self, lost: tuple[int, ...], wanted: tuple[int, ...]) -> Plan:
        builder = PlanBuilder()
        for target in wanted:
            builder.add_xor((target, 0), [((target + self.n) % (2 * self.n), 0)])
        return builder.build(wanted)
