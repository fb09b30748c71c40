"""A fake engine with deterministic tokens and a small real tokenizer, for the server's tests."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ghostserve.errors import GhostServeError, RequestError
from ghostserve.sampling import SamplingParams, TokenOutput
from ghostserve.server import EngineStatus, RankStatus, RecoveryRecord, StandbyStatus

MODEL = "tiny"
MAX_MODEL_LEN = 512
TEXT = "the quick brown fox jumps over the lazy dog. the ghost keeps streams alive; naïve café, 東京, 🙂🙃 ok. " * 8
TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'refuse me' %}{{ raise_exception('no such talk') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that has merges and still splits rare characters into bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=TEMPLATE)


class FakeEngine:
    """Draws tokens from a hash of prompt, seed and position, or says what `script` says."""

    model_name = MODEL
    max_model_len = MAX_MODEL_LEN
    max_sequences = 16

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.eos_token_ids = frozenset({tokenizer.eos_token_id})
        self.reset()

    def reset(self) -> None:
        self.script: list[int] | None = None
        self.pause_at: int | None = None  # before this token
        self.die_at: int | None = None
        self.refusal: RequestError | None = None
        self.bug_at: int | None = None
        self.state = "serving"
        self.recovering_seconds = 0.0
        self.seen: list[tuple[str, list[int], SamplingParams]] = []
        self.running: set[str] = set()
        self.aborted: list[str] = []

    def tokens(self, prompt: Sequence[int], params: SamplingParams) -> list[int]:
        """All tokens that a request will get."""
        if self.script is not None:
            return self.script[: params.max_tokens]
        key = repr((list(prompt), params.seed if params.temperature else None)).encode()
        digest = [hashlib.sha256(key + bytes([i % 256, i // 256])).digest() for i in range(params.max_tokens)]
        return [2 + int.from_bytes(d[:4], "big") % (len(self.tokenizer) - 2) for d in digest]

    async def generate(
        self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> AsyncIterator[TokenOutput]:
        self.seen.append((request_id, list(prompt_token_ids), params))
        if self.refusal is not None:
            raise self.refusal
        if self.state == "failed":
            raise GhostServeError("the engine is dead: all ranks are lost")
        self.running.add(request_id)
        finished = False
        try:
            tokens = self.tokens(prompt_token_ids, params)
            for position, token in enumerate(tokens):
                while self.pause_at == position:
                    await asyncio.sleep(0.005)
                if self.die_at == position:
                    raise GhostServeError("the engine is dead: all ranks are lost")
                if self.bug_at == position:
                    raise ZeroDivisionError("a bug with a secret in it")
                await asyncio.sleep(0)
                stops = token in self.eos_token_ids and not params.ignore_eos
                reason = "stop" if stops or token in params.stop_token_ids else None
                if reason is None and position + 1 == len(tokens):
                    reason = "length"
                finished = reason is not None
                yield output(token, params, reason)
                if finished:
                    return
        finally:
            self.running.discard(request_id)
            if not finished:
                self.aborted.append(request_id)

    def status(self) -> EngineStatus:
        return EngineStatus(
            state=self.state,
            epoch=2,
            step=41,
            watermark=40,
            ranks=[RankStatus(0, 100, "up"), RankStatus(1, 101, "lost")],
            standbys=[StandbyStatus(102, "waiting")],
            parity="rs:2",
            parity_bytes=4096,
            protected_tokens=30,
            unprotected_tokens=3,
            num_running=len(self.running),
            kv_cache_usage=0.25,
            recoveries=[
                RecoveryRecord(
                    epoch=2,
                    reason="rank 1 exited with signal 9",
                    lost_ranks=[1],
                    seconds=1.5,
                    bytes_rebuilt=1000,
                    replayed_steps=2,
                    recomputed_requests=1,
                    phases=[("detected", 0.0), ("resumed", 1.5)],
                )
            ],
            recovering_seconds=self.recovering_seconds,
            counters={"flushes": 7},
        )

    async def check_health(self) -> None:
        if self.state == "failed":
            raise GhostServeError("the engine is dead: all ranks are lost")


def output(token: int, params: SamplingParams, reason: str | None) -> TokenOutput:
    """A token with made-up logprobs; the lowest one is -inf, which JSON can't say."""
    if params.logprobs is None:
        return TokenOutput(token, None, (), reason)
    others = tuple((2 + i, -float(i) if i < 2 else -float("inf")) for i in range(params.logprobs))
    return TokenOutput(token, -0.5, others, reason)
