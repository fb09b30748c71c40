"""Which cache blocks have a place in the parity store when host memory is too small for all of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ghostserve.errors import ConfigError

__all__ = ["Assignment", "ParityBudget"]


@dataclass(frozen=True)
class Assignment:
    """What one `ParityBudget.assign` led to.

    `protected`: every block of the request has a parity block now. `gained`: that was not so before this
    call, so all slots that the request has written so far have to be flushed. `pushed_out`: requests (the
    asking one may be among them) that lost their parity blocks by this call: none of their slots may be
    flushed any more.
    """

    protected: bool
    gained: bool = False
    pushed_out: tuple[str, ...] = ()


@dataclass
class _Claim:
    blocks: list[int] = field(default_factory=list)
    tokens: int = 0
    admitted: bool = False  # counts against the budget
    protected: bool = False  # admitted, and every block has its parity block


class ParityBudget:
    """Maps cache blocks to parity blocks; the coordinator's book, without I/O.

    A request is protected wholly or not at all. When the store is full, a longer context pushes out the
    shortest ones: they cost least to recompute. Flushes of steps that have run may still write a parity block
    that was let go, so it is handed out again only once the watermark has reached them; until then an
    admitted request waits. Blocks may be shared between requests (a common prefix): one is let go with its
    last holder.

    With at least as many parity blocks as cache blocks the mapping is the identity and everything is
    protected (the cache's own rule holds then: a freed block is handed out again only when no flush reads
    it).
    """

    def __init__(self, num_parity_blocks: int, num_blocks: int) -> None:
        """`num_blocks`: blocks of the cache. Raises `ConfigError` for a negative budget or an empty cache."""
        if num_parity_blocks < 0 or num_blocks < 1:
            raise ConfigError(f"{num_parity_blocks} parity blocks for {num_blocks} cache blocks: need >= 0 and >= 1")
        self._capacity = num_parity_blocks
        self._identity = num_parity_blocks >= num_blocks
        self._free = list(range(num_parity_blocks - 1, -1, -1))
        self._cooling: list[tuple[int, int]] = []  # (last step whose flushes may touch it, parity block)
        self._places: dict[int, int] = {}
        self._holders: Counter[int] = Counter()  # admitted requests of each block
        self._claims: dict[str, _Claim] = {}
        self._watermark = -1

    def assign(self, request_id: str, blocks: Sequence[int], context_tokens: int, step: int) -> Assignment:
        """Ask for all `blocks` of a request (`context_tokens` long, no block twice) while `step` is prepared.

        Called again whenever the request has grown, and with each step while it is refused or has to wait.
        """
        claim = self._claims.setdefault(request_id, _Claim())
        # Every sequence asks in every step, between two steps of the model: no look at blocks that it has already.
        if claim.protected and self._grow(claim, blocks):
            claim.tokens = context_tokens
            return Assignment(protected=True)
        was_admitted, was_protected = claim.admitted, claim.protected
        released = self._withdraw(claim) if was_admitted else set[int]()
        claim.blocks, claim.tokens = list(blocks), context_tokens
        victims = self._victims(claim)
        pushed_out = [request_id] if victims is None and was_admitted else []
        for victim in victims or ():
            released |= self._withdraw(self._claims[victim])
            pushed_out.append(victim)
        if victims is not None:
            claim.admitted = True
            self._holders.update(claim.blocks)
        self._let_go(released, step - 1)
        claim.protected = claim.admitted and self._place(claim.blocks)
        return Assignment(claim.protected, claim.protected and not was_protected, tuple(pushed_out))

    def release(self, request_id: str, step: int) -> None:
        """The request is over; `step` is the last one that wrote its slots. Unknown requests are ignored."""
        claim = self._claims.pop(request_id, None)
        if claim is not None and claim.admitted:
            self._let_go(self._withdraw(claim), step)

    def reclaim(self, watermark: int) -> None:
        """All flushes of steps up to `watermark` are over: what was let go by then is free again."""
        self._watermark = max(self._watermark, watermark)
        self._free += [place for step, place in self._cooling if step <= self._watermark]
        self._cooling = [(step, place) for step, place in self._cooling if step > self._watermark]

    def parity_block(self, block: int) -> int | None:
        """The parity block that covers this cache block, or None."""
        return self._places.get(block)

    def is_protected(self, request_id: str) -> bool:
        """True if every block of the request has a parity block."""
        claim = self._claims.get(request_id)
        return claim is not None and claim.protected

    @property
    def protected_tokens(self) -> int:
        """Context tokens of protected requests."""
        return sum(c.tokens for c in self._claims.values() if c.protected)

    @property
    def unprotected_tokens(self) -> int:
        """Context tokens of requests that would have to be recomputed."""
        return sum(c.tokens for c in self._claims.values() if not c.protected)

    def _grow(self, claim: _Claim, blocks: Sequence[int]) -> bool:
        """What `assign` does for a protected request if nobody has to go or wait for it; else False, nothing done."""
        known = len(claim.blocks)
        new = blocks[known:]
        if blocks[:known] != claim.blocks or self._excess(new) > 0 or not self._place(new):
            return False
        self._holders.update(new)
        claim.blocks += new
        return True

    def _excess(self, blocks: Iterable[int]) -> int:
        """By how many blocks the budget would be exceeded with these."""
        return len(self._holders) + sum(block not in self._holders for block in blocks) - self._capacity

    def _victims(self, claim: _Claim) -> list[str] | None:
        """The requests that must go so that `claim` fits, shortest first; None if it can't fit even so."""
        excess = self._excess(claim.blocks)
        if excess <= 0:
            return []
        shorter = [(c.tokens, name) for name, c in self._claims.items() if c.admitted and c.tokens < claim.tokens]
        if sum(len(self._claims[name].blocks) for _, name in shorter) < excess:
            return None
        holders = Counter(self._holders)
        holders.update(claim.blocks)
        victims: list[str] = []
        for _, name in sorted(shorter):
            if len(holders) <= self._capacity:
                break
            _subtract(holders, self._claims[name].blocks)
            victims.append(name)
        return victims if len(holders) <= self._capacity else None

    def _withdraw(self, claim: _Claim) -> set[int]:
        """Stop counting the claim; its blocks, which may have lost their last holder."""
        _subtract(self._holders, claim.blocks)
        claim.admitted = claim.protected = False
        return set(claim.blocks)

    def _let_go(self, blocks: set[int], last_step: int) -> None:
        """Take the parity blocks away from those of `blocks` that nobody holds any more."""
        orphans = [block for block in blocks if block in self._places and block not in self._holders]
        places = [self._places.pop(block) for block in sorted(orphans)]
        if not self._identity:
            self._cooling += [(last_step, place) for place in places]
            self.reclaim(self._watermark)

    def _place(self, blocks: Iterable[int]) -> bool:
        """Give a parity block to all of `blocks` that lack one, or to none of them; True if all have one."""
        missing = sorted(block for block in blocks if block not in self._places)
        if self._identity:
            self._places.update(zip(missing, missing, strict=True))
            return True
        if len(missing) > len(self._free):
            return False
        self._places.update((block, self._free.pop()) for block in missing)
        return True


def _subtract(holders: Counter[int], blocks: Iterable[int]) -> None:
    for block in blocks:
        holders[block] -= 1
        if holders[block] <= 0:
            del holders[block]
