"""The contract of an erasure code.

A code over N data shards and K parity shards says *what* to compute as a `Plan`, a straight-line program
of multiply-and-xor steps over GF(2^8) (polynomial 0x11d). Backends say *how*: they only run plans.

A shard's bytes for one slot are shared out to `rows` equal *symbols*, stripe by stripe: of each stretch of `rows`
stripes, `stripe_bytes` long, the r-th belongs to symbol r. Position-wise codes (`xor`, `rs`) have one row; the array
code `rdp` has `rows` of them, all inside one slot, so that every slot can be encoded and rebuilt alone whatever the
code. Stripes keep what is computed together close together, as memory likes it (docs/decisions/0009).
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from math import gcd

from ghostserve.errors import TooManyLostError, UnsupportedCodeError

__all__ = ["LONGEST_STRIPE", "Code", "Plan", "RowDiagonal", "Step", "stripe_bytes"]

LONGEST_STRIPE = 128
"""Bytes: a cache line of a GPU, two of a CPU."""


def stripe_bytes(slot_bytes: int, rows: int) -> int:
    """Bytes of a symbol that lie side by side in a slot: the largest power of two <= `LONGEST_STRIPE` that divides it.

    All of them where there is one row.
    """
    return slot_bytes if rows == 1 else gcd(slot_bytes // rows, LONGEST_STRIPE)


@dataclass(frozen=True)
class Step:
    """`symbol[target] = xor over terms of coefficient * symbol[source]` in GF(2^8).

    A symbol is numbered `position * rows + row`, where positions count the plan's inputs first and its
    outputs after them. A step may read outputs that earlier steps have written (this is what makes RDP's
    zig-zag cheap).
    """

    target: int
    terms: tuple[tuple[int, int], ...]  # (source symbol, coefficient 1..255)


@dataclass(frozen=True)
class RowDiagonal:
    """What the steps of a row-diagonal plan amount to, for backends that would rather loop over rows than list them.

    Symbol (r, column c) lies on diagonal (r + c) mod `prime`; rows xor to zero over all columns, the shard without a
    column holds diagonals 0..prime-2, each the xor of its symbols. `columns[p]`: of the shard at position p of the
    plan, None for the diagonals' shard.
    """

    prime: int
    columns: tuple[int | None, ...]


@dataclass(frozen=True)
class Plan:
    """What a backend runs: reads `inputs`, writes `outputs` (shard ids: data 0..N-1, parity N..N+K-1)."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rows: int
    steps: tuple[Step, ...]
    array: RowDiagonal | None = None


class Code(ABC):
    """An erasure code over `n` data shards with `k` parity shards.

    Raises `UnsupportedCodeError` on construction where `supports(n, k)` gives a reason.
    """

    name: str

    def __init__(self, n: int, k: int) -> None:
        reason = self.supports(n, k)
        if reason is not None:
            raise UnsupportedCodeError(reason)
        self.n = n
        self.k = k

    @classmethod
    @abstractmethod
    def supports(cls, n: int, k: int) -> str | None:
        """None if the code serves `n` data and `k` parity shards, else why not, with the numbers."""

    @property
    def rows(self) -> int:
        """Symbols that one slot's bytes of a shard are shared out to; a slot's bytes must be a multiple of it."""
        return 1

    @cached_property
    def encode_plan(self) -> Plan:
        """Inputs 0..n-1, outputs n..n+k-1."""
        return self._encode_plan()

    def rebuild_plan(self, lost: Collection[int], wanted: Collection[int] | None = None) -> Plan:
        """The plan that computes `wanted` (default: all of `lost`) from the shards that are not in `lost`.

        Shard ids are 0..n+k-1, data first. The plan's outputs begin with `wanted` in ascending order; shards
        that it must compute on the way (scratch) follow. Raises `TooManyLostError` for more than it `rebuilds`.
        """
        gone = tuple(sorted(set(lost)))
        ask = gone if wanted is None else tuple(sorted(set(wanted)))
        total = self.n + self.k
        if any(not 0 <= s < total for s in gone) or not set(ask) <= set(gone):
            raise UnsupportedCodeError(
                f"lost {list(gone)} and wanted {list(ask)}: shard ids are 0..{total - 1}, wanted must be lost"
            )
        if not self.rebuilds(gone):
            raise TooManyLostError(lost=gone, parity=self.k)
        return self._rebuild_plan(gone, ask)

    def rebuilds(self, lost: Collection[int]) -> bool:
        """True if what is left determines the shards in `lost`, distinct ids; of most codes any K."""
        return len(lost) <= self.k

    def check_slot_bytes(self, slot_bytes: int) -> None:
        """Raise `UnsupportedCodeError` if a slot of this many bytes can't be cut into `rows` symbols."""
        if slot_bytes <= 0 or slot_bytes % self.rows:
            raise UnsupportedCodeError(
                f"{self} needs slots of a positive multiple of {self.rows} bytes, not {slot_bytes}"
            )

    @abstractmethod
    def _encode_plan(self) -> Plan: ...

    @abstractmethod
    def _rebuild_plan(self, lost: tuple[int, ...], wanted: tuple[int, ...]) -> Plan: ...

    def __str__(self) -> str:
        return f"{self.name} {self.n}:{self.k}"
