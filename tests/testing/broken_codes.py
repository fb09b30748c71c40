"""Codes that break one promise each."""

import random
from collections.abc import Collection
from dataclasses import replace

from ghostserve.codes import Plan, ReedSolomonCode, Step
from ghostserve.errors import UnsupportedCodeError


class Takes(ReedSolomonCode):
    """Makes what it says that it does not serve."""

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k = n, k


class Shy(ReedSolomonCode):
    """Serves a shape, and says that it does not."""

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k = n, k

    @classmethod
    def supports(cls, n: int, k: int) -> str | None:
        return "not today"


class Mute(ReedSolomonCode):
    """Refuses without saying what."""

    @classmethod
    def supports(cls, n: int, k: int) -> str | None:
        return "no" if super().supports(n, k) else None


class Encoded(ReedSolomonCode):
    """Every encode plan goes through `change`."""

    def change(self, plan: Plan) -> Plan:
        raise NotImplementedError

    def _encode_plan(self) -> Plan:
        return self.change(super()._encode_plan())


class Swapped(Encoded):
    """Writes its parity shards in another order than their ids."""

    def change(self, plan: Plan) -> Plan:
        return replace(plan, outputs=plan.outputs[::-1], steps=plan.steps[::-1])


class WrongCoefficient(Encoded):
    """One coefficient of the encoding is not that of the rebuild."""

    def change(self, plan: Plan) -> Plan:
        first, *others = plan.steps
        (source, coefficient), *terms = first.terms
        return replace(plan, steps=(Step(first.target, ((source, coefficient ^ 3), *terms)), *others))


class OtherMatrix(ReedSolomonCode):
    """A good code: but another one."""

    def parity_row(self, shard: int) -> list[int]:
        return super().parity_row(shard + 1)


class Rebuilt(ReedSolomonCode):
    """Every plan goes through `change`."""

    def change(self, plan: Plan, lost: tuple[int, ...], wanted: tuple[int, ...]) -> Plan:
        raise NotImplementedError

    def _rebuild_plan(self, lost: tuple[int, ...], wanted: tuple[int, ...]) -> Plan:
        return self.change(super()._rebuild_plan(lost, wanted), lost, wanted)


class LeavesOut(Rebuilt):
    """Its last output is never written."""

    def change(self, plan: Plan, lost: tuple[int, ...], wanted: tuple[int, ...]) -> Plan:
        return replace(plan, steps=plan.steps[:-1])


class ReadsWhatItWrites(Rebuilt):
    """Adds to what its outputs hold."""

    def change(self, plan: Plan, lost: tuple[int, ...], wanted: tuple[int, ...]) -> Plan:
        return replace(plan, steps=tuple(Step(s.target, (*s.terms, (s.target, 1))) for s in plan.steps))


class ReadsTheLost(Rebuilt):
    """Takes each shard that was lost from where it was."""

    def change(self, plan: Plan, lost: tuple[int, ...], wanted: tuple[int, ...]) -> Plan:
        count = len(wanted)
        return Plan(wanted, wanted, 1, tuple(Step(count + at, ((at, 1),)) for at in range(count)))


class Descending(ReedSolomonCode):
    """Gives the shards asked for from the highest down."""

    def _rebuild_plan(self, lost: tuple[int, ...], wanted: tuple[int, ...]) -> Plan:
        return super()._rebuild_plan(lost, wanted[::-1])


class Whimsical(ReedSolomonCode):
    """Each one draws a matrix of its own."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__(n, k)
        self._scale = random.Random(id(self)).randrange(1, 200)

    def parity_row(self, shard: int) -> list[int]:
        return super().parity_row(shard + self._scale)


class Eager(Rebuilt):
    """Has work to do when nothing is asked for."""

    def change(self, plan: Plan, lost: tuple[int, ...], wanted: tuple[int, ...]) -> Plan:
        return plan if wanted else replace(plan, inputs=(self.n,))


class Boastful(ReedSolomonCode):
    """Says that it rebuilds one more than it can."""

    def rebuilds(self, lost: Collection[int]) -> bool:
        return len(lost) <= self.k + 1


class Careless(ReedSolomonCode):
    """Plans whatever was lost."""

    def rebuild_plan(self, lost: Collection[int], wanted: Collection[int] | None = None) -> Plan:
        total = self.n + self.k
        if any(not 0 <= shard < total for shard in lost) or not set(wanted or ()) <= set(lost):
            raise UnsupportedCodeError(f"shard ids are 0..{total - 1}")
        return self.encode_plan


class Anywhere(ReedSolomonCode):
    """Takes shard ids that do not exist, and ones that were not lost."""

    def rebuild_plan(self, lost: Collection[int], wanted: Collection[int] | None = None) -> Plan:
        gone = tuple(sorted({shard % (self.n + self.k) for shard in lost}))
        return super().rebuild_plan({*gone, *(wanted or ())}, wanted)


class AnySlot(ReedSolomonCode):
    """Takes slots of no bytes."""

    def check_slot_bytes(self, slot_bytes: int) -> None:
        return
