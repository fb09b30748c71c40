"""How much of a lost context is recomputed while the rest is rebuilt: a pure decision from measured rates."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Part", "Policy", "Rates", "Split", "split"]

Policy = Literal["hybrid", "rebuild", "recompute"]


@dataclass(frozen=True)
class Part:
    """Tokens `start`..`stop`-1 of a request, as one step computed them: run alone again they can give the same bits."""

    request_id: str
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.start

    @property
    def keys(self) -> float:
        """Keys that its tokens attend to, over all of them."""
        return self.tokens * (self.start + (self.tokens + 1) / 2)


@dataclass(frozen=True)
class Rates:
    """Seconds, as they were measured on this machine.

    `start`, `slot`: a rebuild of some slots takes start + slot * slots; `step`, `token`, `key`: a recomputed part takes
    step + token * tokens + key * keys.
    `alongside`: what is left of the speed of each, 0 to 1, while a rebuild and a recompute run together.
    `accepted`: the share of recomputed slots that came out with the recorded bits.
    """

    slot: float
    step: float
    token: float
    key: float
    alongside: float = 0.5
    accepted: float = 1.0
    start: float = 0.0

    def rebuild(self, slots: int) -> float:
        return self.start + self.slot * slots if slots else 0.0

    def recompute(self, part: Part) -> float:
        return self.step + self.token * part.tokens + self.key * part.keys

    def together(self, rebuild: float, recompute: float) -> float:
        """Seconds for both, of which each alone would take that long."""
        short, long = sorted((rebuild, recompute))
        return long - short + short / self.alongside


@dataclass(frozen=True)
class Split:
    """`recompute`: parts in the order in which to run them; all other slots are rebuilt.

    Seconds are predictions, None without rates: of this split, and of its two extremes.
    """

    recompute: tuple[Part, ...]
    reasons: tuple[str, ...]
    seconds: float | None = None
    rebuild_only: float | None = None
    recompute_only: float | None = None


def split(contexts: Sequence[Sequence[Part]], rates: Rates | None, policy: Policy = "hybrid") -> Split:
    """Which parts to recompute so that recompute and rebuild together end as early as they can.

    `contexts`: the parts of each request in the order of its tokens. Parts are taken in the order of their cost a slot,
    and of one request only from its beginning on, as a part needs the KV before it; of all lengths of that sequence the
    best is chosen. Design, section 6: the first chunks are the cheapest to recompute, as they attend to the least.
    """
    total = sum(part.tokens for parts in contexts for part in parts)
    if policy == "rebuild":
        return _without("the recovery was set to rebuild", total, rates)
    if policy == "recompute":
        every = tuple(part for parts in contexts for part in parts)
        reason = f"the recovery was set to recompute: all {total} slots, {len(every)} parts"
        return _predicted(Split(every, (reason,)), total, contexts, rates)
    if rates is None:
        return _without("no rebuild and no prefill were measured yet", total, rates)
    if rates.accepted < 0.5:
        share = f"{rates.accepted:.0%} of recomputed slots had the recorded bits"
        return _without(f"{share}: recomputing is no use here", total, rates)
    order = _cheapest_first(contexts, rates)
    best, spent, left = (rates.together(rates.rebuild(total), 0.0), 0), 0.0, total
    for count, part in enumerate(order, start=1):
        spent += rates.recompute(part)
        left -= part.tokens
        best = min(best, (rates.together(rates.rebuild(left), spent), count))
    chosen = order[: best[1]]
    taken = sum(part.tokens for part in chosen)
    if not chosen:
        first = f", the first of {order[0].tokens} by {rates.recompute(order[0]):.4f} s" if order else ""
        return _without(f"all {total} slots rebuild in {rates.rebuild(total):.4f} s{first}", total, rates)
    what = "outright" if taken == total else f"beside the rebuild of {total - taken}"
    reason = f"{taken} slots in {len(chosen)} parts are recomputed {what}: {best[0]:.4f} s expected"
    return _predicted(Split(tuple(chosen), (reason,)), total, contexts, rates)


def _cheapest_first(contexts: Sequence[Sequence[Part]], rates: Rates) -> list[Part]:
    heap = [(rates.recompute(parts[0]) / parts[0].tokens, index, 0) for index, parts in enumerate(contexts) if parts]
    heapq.heapify(heap)
    order = []
    while heap:
        _, index, at = heapq.heappop(heap)
        parts = contexts[index]
        order.append(parts[at])
        if at + 1 < len(parts):
            heapq.heappush(heap, (rates.recompute(parts[at + 1]) / parts[at + 1].tokens, index, at + 1))
    return order


def _without(reason: str, total: int, rates: Rates | None) -> Split:
    if rates is None:
        return Split((), (f"nothing is recomputed: {reason}",))
    seconds = rates.rebuild(total)
    return Split((), (f"nothing is recomputed: {reason}",), seconds, seconds)


def _predicted(found: Split, total: int, contexts: Sequence[Sequence[Part]], rates: Rates | None) -> Split:
    if rates is None:
        return found
    left = total - sum(part.tokens for part in found.recompute)
    return replace(
        found,
        seconds=rates.together(rates.rebuild(left), sum(rates.recompute(part) for part in found.recompute)),
        rebuild_only=rates.rebuild(total),
        recompute_only=sum(rates.recompute(part) for parts in contexts for part in parts),
    )
