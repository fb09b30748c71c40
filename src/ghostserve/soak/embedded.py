"""A soak of the embedded engine: its server is `soak.child`, its oracle `engine.rerun`."""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from ghostserve.engine.config import EngineConfig
from ghostserve.engine.messages import Sampled
from ghostserve.engine.modelspec import inspect_checkpoint
from ghostserve.engine.record import read_recording
from ghostserve.engine.rerun import Difference, rerun
from ghostserve.engine.serving import LoggedStep
from ghostserve.soak.child import ChildSettings
from ghostserve.soak.server import Comparison, Drawn, SoakServer

__all__ = ["EmbeddedServer", "computed_again"]

_CACHE_BYTES = 64 << 20
_CHUNK = 64
"""Tokens of a step: prompts of a few hundred are cut, so that there is a prefill to strike into."""
_SCRUB_RATE = 256 << 20
"""Bytes a second: all that is committed, again and again; it must find nothing."""
_LOWEST = -9999.0  # what the server sends for less


class EmbeddedServer(SoakServer):
    """`SoakServer` of the embedded engine."""

    @property
    def config(self) -> EngineConfig:
        settings = self.settings
        return EngineConfig(
            model=str(self.model),
            device="cpu",
            tensor_parallel_size=settings.tensor_parallel_size,
            parity=settings.parity,
            standbys=settings.standbys,
            step_deadline=settings.step_deadline,
            phase_deadline=settings.phase_deadline,
            kv_cache_memory=_CACHE_BYTES,
            scrub_rate=_SCRUB_RATE,
            max_num_seqs=max(8, settings.clients),
            max_num_batched_tokens=max(_CHUNK, settings.clients),
        )

    def command(self) -> Sequence[str]:
        settings = ChildSettings(
            engine=self.config,
            model_name=self.model_name,
            record=str(self.record),
            address=str(self._address),
            skip_rebuild=self.settings.sabotage == "skip-rebuild",
        )
        return [sys.executable, "-m", "ghostserve.soak.child", msgspec.json.encode(settings).decode()]

    def find_url(self) -> str | None:
        return self._address.read_text() if self._address.exists() else None

    def compare(self, on_progress: Callable[[int, int], None]) -> Comparison:
        recording = list(read_recording(self.record))
        config = self.config
        result = rerun(config, inspect_checkpoint(config), recording, on_progress=on_progress)
        delivered: dict[str, list[Drawn]] = {}
        for entry in recording:
            for request_id, sampled in (entry.accepted or {}).items():
                name = request_id.rpartition("-")[0]  # the server numbers the choices of a request; these have one
                delivered.setdefault(name, []).append((sampled.token_id, _sent(sampled.logprob)))
        first = _describe(result.differences[0]) if result.differences else None
        return Comparison(result.compared, len(result.differences), first, delivered, computed_again(recording))

    @property
    def _address(self) -> Path:
        return self._own / "address"


def computed_again(recording: Iterable[LoggedStep]) -> int:
    """Tokens of all requests that were run more than once in steps that counted: begun again, or preempted."""
    run: Counter[str] = Counter()
    length: Counter[str] = Counter()
    for entry in recording:
        for part in entry.plan.parts:
            stop = part.start + len(part.token_ids)
            run[part.request_id] += len(part.token_ids)
            length[part.request_id] = max(length[part.request_id], stop)
    return run.total() - length.total()


def _sent(logprob: float | None) -> float | None:
    """As a client gets it: JSON has neither NaN nor infinity."""
    return None if logprob is None or math.isnan(logprob) else max(logprob, _LOWEST)


def _describe(difference: Difference) -> str:
    return (
        f"request {difference.disturbed.request_id}, step {difference.step}: {_token(difference.disturbed)}"
        f" instead of {_token(difference.undisturbed)}"
    )


def _token(sampled: Sampled | None) -> str:
    return "nothing" if sampled is None else f"token {sampled.token_id} (logprob {sampled.logprob})"
