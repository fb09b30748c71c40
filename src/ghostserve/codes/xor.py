"""One parity shard: the xor of the data shards, as in RAID 4."""

from ghostserve.codes.base import Code, Plan
from ghostserve.codes.builder import PlanBuilder

__all__ = ["XorCode"]


class XorCode(Code):
    """K = 1, any N >= 1. Position-wise, and its own inverse: any shard is the xor of all the others."""

    name = "xor"

    @classmethod
    def supports(cls, n: int, k: int) -> str | None:
        if n < 1:
            return f"xor needs at least 1 data shard, not {n}"
        if k != 1:
            return f"xor has exactly 1 parity shard, not {k}; rdp has 2, rs:K has any K"
        return None

    def _encode_plan(self) -> Plan:
        return self._rebuild_plan((self.n,), (self.n,))

    def _rebuild_plan(self, lost: tuple[int, ...], wanted: tuple[int, ...]) -> Plan:
        builder = PlanBuilder()
        for target in wanted:
            builder.add_xor((target, 0), ((s, 0) for s in range(self.n + 1) if s != target))
        return builder.build(wanted)
