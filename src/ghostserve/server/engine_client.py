"""The engine as the server sees it. Whatever has this shape can be served; the server imports no engine."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from ghostserve.sampling import SamplingParams, TokenOutput
from ghostserve.status import EngineStatus, RankStatus, RecoveryRecord, StandbyStatus

__all__ = ["EngineClient", "EngineStatus", "RankStatus", "RecoveryRecord", "StandbyStatus"]


class EngineClient(Protocol):
    """What the server needs from an engine."""

    @property
    def model_name(self) -> str:
        """The name that requests give as `model`."""

    @property
    def max_model_len(self) -> int:
        """The most tokens that a prompt and its completion may have together."""

    @property
    def max_sequences(self) -> int:
        """Sequences that it takes at once, running and queued; `generate` refuses more."""

    @property
    def tokenizer(self) -> Any:
        """A transformers fast tokenizer."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end a sequence."""

    def generate(
        self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> AsyncIterator[TokenOutput]:
        """Generate one sequence, token by token: an async generator.

        Closing it aborts the request and frees its blocks. It raises RequestError for what the engine refuses
        and another GhostServeError when the engine has died. A recovery is only a pause.
        """

    def status(self) -> EngineStatus:
        """A snapshot; cheap, callable at any time."""

    async def check_health(self) -> None:
        """Raise GhostServeError when the engine is dead for good."""
