"""Continuous batching with chunked prefill: which tokens of which requests make the next step."""

from collections import deque
from dataclasses import dataclass, field

from ghostserve.engine.blocks import BlockManager
from ghostserve.engine.messages import Draw, Sampled, SequencePart
from ghostserve.sampling import SamplingParams

__all__ = ["Request", "Scheduler"]


@dataclass(eq=False)
class Request:
    """A request's tokens and how far their KV has come. `tokens` = prompt + output."""

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    eos_token_ids: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    parts: list[tuple[int, int]] = field(default_factory=list)
    """(start, stop) of each step's share of the KV: computed alone again, a share can give the same bits."""
    last_step: int = 0
    recomputed: int = 0

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def num_output(self) -> int:
        return len(self.tokens) - len(self.prompt)

    def draw(self) -> Draw:
        p = self.params
        return Draw(p.temperature, p.top_p, max(p.top_k, 0), self.seed, self.num_output, p.logprobs)

    def append(self, token: int) -> str | None:
        """Take the next token; returns the reason if it is the last."""
        self.tokens.append(token)
        if token in self.params.stop_token_ids or (token in self.eos_token_ids and not self.params.ignore_eos):
            return "stop"
        return "length" if self.num_output >= self.params.max_tokens else None


class Scheduler:
    """First come, first served. Decodes go before prefill chunks; when blocks run out, the newest request gives way."""

    def __init__(self, blocks: BlockManager, *, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self._blocks = blocks
        self._max_seqs = max_num_seqs
        self._max_tokens = max_num_batched_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.requests: dict[str, Request] = {}
        self.preempted: list[Request] = []
        """Requests that gave way since somebody last looked and cleared this."""
        self.short_of_blocks = False
        """True if a request had to wait for blocks when the last step was put together."""

    def add(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """The request is over (finished, aborted): its blocks rest until nothing can use them any more."""
        del self.requests[request.request_id]
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._give_back(request)

    def restart(self, request: Request) -> None:
        """Begin again from the tokens: drop the KV, compute it anew when the request's turn comes."""
        self.running.remove(request)
        self._give_back(request)
        request.num_computed = 0
        request.recomputed += 1
        self.waiting.appendleft(request)

    def schedule(self, step: int) -> list[SequencePart]:
        """The parts of the next step, and everything that follows from having sent it. Empty: nothing can run."""
        budget = self._max_tokens
        parts: list[SequencePart] = []
        self.short_of_blocks = False
        # Decodes first: a long prompt must not hold up those that already stream.
        for request in sorted(self.running, key=lambda r: len(r.tokens) - r.num_computed > 1):
            if request in self.running and budget > 0:
                part = self._part(request, budget, taken={p.request_id for p in parts})
                if part is not None:
                    parts.append(part)
                    budget -= len(part.token_ids)
        # Nobody comes in while one that runs waits for blocks: the newcomer would take them away from it.
        while self.waiting and budget > 0 and len(self.running) < self._max_seqs and not self.short_of_blocks:
            request = self.waiting[0]
            take = min(budget, len(request.tokens))
            if self._blocks.needed(take) > self._blocks.num_free:
                self.short_of_blocks = True
                break
            self.running.append(self.waiting.popleft())
            part = self._part(request, budget, taken=set())
            assert part is not None
            parts.append(part)
            budget -= len(part.token_ids)
        for part in parts:
            request = self.requests[part.request_id]
            request.num_computed += len(part.token_ids)
            request.parts.append((part.start, request.num_computed))
            request.last_step = step
        return parts

    def accept(self, sampled: Sampled) -> tuple[Request, str | None] | None:
        """Append a drawn token to its request; None if the request is gone or was sent back meanwhile."""
        request = self.requests.get(sampled.request_id)
        if request is None or request not in self.running:
            return None
        reason = request.append(sampled.token_id)
        if reason is not None:
            self.remove(request)
        return request, reason

    def _part(self, request: Request, budget: int, *, taken: set[str]) -> SequencePart | None:
        """The request's share of this step; None if it must wait for blocks."""
        take = min(budget, len(request.tokens) - request.num_computed)
        stop = request.num_computed + take
        missing = self._blocks.needed(stop) - len(request.blocks)
        if missing > self._blocks.num_free:
            self.short_of_blocks = True
            self._make_room(request, taken)
            return None
        request.blocks += self._blocks.allocate(max(0, missing))
        return SequencePart(
            request.request_id,
            tuple(request.tokens[request.num_computed : stop]),
            request.num_computed,
            tuple(request.blocks[: self._blocks.needed(stop)]),
            request.draw() if stop == len(request.tokens) else None,
        )

    def _make_room(self, request: Request, taken: set[str]) -> None:
        """Send the newest request back to the queue that has no part in this step yet; none older than `request`.

        Blocks rest before they are free again, so this helps later steps; while some rest, nobody has to go.
        """
        if self._blocks.has_resting:
            return
        newer = self.running[self.running.index(request) + 1 :]
        newest = next((r for r in reversed(newer) if r.request_id not in taken), None)
        if newest is not None:
            self.restart(newest)
            self.preempted.append(newest)

    def _give_back(self, request: Request) -> None:
        self._blocks.free(request.blocks, request.last_step)
        request.blocks = []
        request.parts = []
