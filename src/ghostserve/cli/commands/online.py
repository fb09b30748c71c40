"""`ghostserve bench online`: the options that are its own."""

from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

__all__ = ["OnlineOptions"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OnlineOptions:
    """What `ghostserve bench online` sends, and what fails meanwhile."""

    strategies: str | None = None
    """online: none, replicate-host, replicate-ssd, parity-rebuild, parity-hybrid, separated by commas; default: all."""
    failures: str | None = None
    """online: percentages of the requests that a failure hits; default: 0,5,10,15."""
    mtbf: float | None = None
    """online: one more case, with failures at random times this many seconds apart in the mean."""
    requests: int | None = None
    """online: how many requests a case has; default: 20."""
    rate: float | None = None
    """online: requests a second, Poisson; default: 0.7 of what the engine is measured to take."""
    prompt: str | None = None
    """online: tokens of a prompt as LEAST,MOST, or short, medium, long; default: long (real models on CPU: medium)."""
    output_tokens: str | None = None
    """online: tokens that a request draws, as LEAST,MOST; default: 24,64, with short and medium prompts 8,16."""
    trace: Path | None = None
    """online: send the first requests of this trace (Azure CSV, Mooncake JSONL) at its times, with its lengths."""
    scale_rate: float = 1.0
    """online: 2 lets requests come twice as fast."""
    scale_length: float = 1.0
    """online: 0.5 halves prompts and outputs."""
    slo_ttft: float | None = None
    """online: seconds to the first token that a good request may take; default: 5 times those of one alone."""
    slo_per_token: float | None = None
    """online: seconds to each further one, in the mean; default: 3 times those of one alone."""
    max_num_seqs: int = 16
    """online: requests that run together; the KV cache is as large as they need."""
    max_num_batched_tokens: int = 512
    """online: tokens of a step, of prompts in chunks."""
    standbys: int = 1
    """online: processes that wait to take a lost rank's place."""
    time_limit: float = 600.0
    """online: seconds that one case of one strategy may take."""
    seed: int = 0
    """online: of arrivals, lengths and failures."""
