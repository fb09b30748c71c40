"""GhostServe's metrics on vLLM's own /metrics: read from the status file at the moment of the scrape."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ghostserve.status_metrics import status_metrics
from ghostserve.vllm.status_file import read_status

__all__ = ["StatusCollector", "metrics_registered"]

log = logging.getLogger("vllm.ghostserve.metrics")


class StatusCollector(Collector):
    """All `ghostserve_*` metrics; none while nothing is published."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterator[Metric]:
        """One small file, read once."""
        status = read_status(self._path)
        if status is not None:
            yield from status_metrics(status)

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not depend on what is published yet."""
        return iter(())


@contextmanager
def metrics_registered(path: Path, registry: CollectorRegistry = REGISTRY) -> Iterator[None]:
    """Exposes the metrics for as long as the context is open.

    vLLM's /metrics shows prometheus_client's default registry. With several API servers (prometheus_client's
    multiprocess mode) it shows nothing but counters that these share through files, and no collector has a place there.
    """
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        log.warning("/metrics has no ghostserve_* with several API servers; /v1/fault_tolerance/status has the figures")
        yield
        return
    collector = StatusCollector(path)
    registry.register(collector)
    try:
        yield
    finally:
        registry.unregister(collector)
