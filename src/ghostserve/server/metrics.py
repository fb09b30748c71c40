"""What the server measures itself, under the `vllm:*` names that dashboards know."""

import asyncio
import time
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ghostserve.server.engine_client import EngineClient
from ghostserve.server.engine_metrics import EngineCollector

__all__ = ["RequestMetrics", "TrackedRequest"]

# The buckets are vLLM's, so that its dashboards' quantiles mean the same here.
FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
    *(40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
    *(40.0, 80.0),
)
REQUEST_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0),
    *(480.0, 960.0, 1920.0, 7680.0),
)


class RequestMetrics:
    """The counters and histograms of one app, with a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, engine: EngineClient) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(engine))
        model = engine.model_name

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model_name"], registry=self._registry).labels(model)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            labels = ["model_name"]
            return Histogram(name, text, labels, registry=self._registry, buckets=buckets).labels(model)

        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens processed.")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated.")
        self.first_token = histogram(
            "vllm:time_to_first_token_seconds", "From arrival to the first token.", FIRST_TOKEN_BUCKETS
        )
        self.inter_token = histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a sequence.", TOKEN_BUCKETS
        )
        self.per_token = histogram(
            "vllm:time_per_output_token_seconds", "The older name of inter_token_latency.", TOKEN_BUCKETS
        )
        self.whole_request = histogram(
            "vllm:e2e_request_latency_seconds", "From arrival to the last token.", REQUEST_BUCKETS
        )
        success = Counter(
            "vllm:request_success",
            "Requests by how they ended.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self.finished = {reason: success.labels(model, reason) for reason in ("stop", "length", "abort", "error")}

    def track(self, prompt_tokens: int) -> "TrackedRequest":
        """A context that times one sequence from now on."""
        return TrackedRequest(self, prompt_tokens)

    def exposition(self) -> bytes:
        """All metrics, the engine's too, in Prometheus' text format."""
        return generate_latest(self._registry)


class TrackedRequest:
    """Times one sequence; left without `finish`, it counts as aborted or failed."""

    def __init__(self, metrics: RequestMetrics, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._prompt_tokens = prompt_tokens
        self._arrival = time.monotonic()
        self._previous: float | None = None
        self._reason: str | None = None

    def token(self) -> None:
        """A token has arrived."""
        now = time.monotonic()
        if self._previous is None:
            self._metrics.prompt_tokens.inc(self._prompt_tokens)
            self._metrics.first_token.observe(now - self._arrival)
        else:
            self._metrics.inter_token.observe(now - self._previous)
            self._metrics.per_token.observe(now - self._previous)
        self._metrics.generation_tokens.inc()
        self._previous = now

    def finish(self, reason: str) -> None:
        """The sequence is complete."""
        self._reason = reason
        self._metrics.whole_request.observe(time.monotonic() - self._arrival)

    def __enter__(self) -> "TrackedRequest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reason = self._reason
        if reason is None:
            gone = isinstance(error, GeneratorExit | asyncio.CancelledError)
            reason = "abort" if gone else "error"
        self._metrics.finished[reason].inc()
