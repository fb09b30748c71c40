"""The embedded engine's metrics, taken at the moment of the scrape."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ghostserve.server.engine_client import EngineClient, EngineStatus
from ghostserve.status_metrics import status_metrics

__all__ = ["EngineCollector"]


class EngineCollector(Collector):
    """Reads `EngineClient.status()` once a scrape."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """All metrics that come from the engine."""
        status = self._engine.status()
        yield from _vllm_gauges(status, self._engine.model_name)
        yield from status_metrics(status)

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering an app must not ask the engine, which may still be loading."""
        return iter(())


def _vllm_gauges(status: EngineStatus, model_name: str) -> Iterator[Metric]:
    for name, text, value in (
        ("vllm:num_requests_running", "Requests in the running batch.", status.num_running),
        ("vllm:num_requests_waiting", "Requests that wait to be run.", status.num_waiting),
        ("vllm:kv_cache_usage_perc", "Used share of the KV cache, 0 to 1.", status.kv_cache_usage),
    ):
        family = GaugeMetricFamily(name, text, labels=["model_name"])
        family.add_metric([model_name], value)
        yield family
