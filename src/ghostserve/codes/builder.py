"""Writes plans in terms of shards and rows, so that codes need not know how a plan numbers its symbols."""

from collections.abc import Iterable, Sequence

from ghostserve.codes.base import Plan, Step

__all__ = ["PlanBuilder", "Symbol"]

Symbol = tuple[int, int]  # (shard id, row)


class PlanBuilder:
    """Collects steps in the order in which they will run; `build` numbers the symbols."""

    def __init__(self, rows: int = 1) -> None:
        self._rows = rows
        self._steps: list[tuple[Symbol, list[tuple[Symbol, int]]]] = []

    def add(self, target: Symbol, terms: Iterable[tuple[Symbol, int]]) -> None:
        """Append `target = xor of coefficient * source`; terms with coefficient 0 are left out."""
        self._steps.append((target, [term for term in terms if term[1]]))

    def add_xor(self, target: Symbol, sources: Iterable[Symbol]) -> None:
        """Append `target = xor of sources`."""
        self.add(target, ((source, 1) for source in sources))

    def build(self, outputs: Sequence[int]) -> Plan:
        """The plan that writes the shards `outputs`, in that order.

        Its inputs are just the shards that some step reads, ascending: what isn't read need not be fetched.
        """
        read = {source[0] for _, terms in self._steps for source, _ in terms}
        inputs = tuple(sorted(read - set(outputs)))
        position = {shard: at for at, shard in enumerate((*inputs, *outputs))}

        def number(symbol: Symbol) -> int:
            return position[symbol[0]] * self._rows + symbol[1]

        steps = tuple(
            Step(number(target), tuple((number(source), coefficient) for source, coefficient in terms))
            for target, terms in self._steps
        )
        return Plan(inputs, tuple(outputs), self._rows, steps)
