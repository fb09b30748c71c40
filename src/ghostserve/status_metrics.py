"""The engine's status as Prometheus metrics, the same ones whichever server exposes them."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ghostserve.status import EngineStatus, RecoveryRecord

__all__ = ["status_metrics"]

STATES = ("serving", "recovering", "failed")
RECOVERY_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0)


def status_metrics(status: EngineStatus) -> Iterator[Metric]:
    """Everything that is named `ghostserve_*`."""
    yield from _gauges(status)
    yield _ranks(status)
    yield _states(status)
    yield from _counters(status)
    yield _recovery_seconds(status.recoveries)


def _gauges(status: EngineStatus) -> Iterator[Metric]:
    for name, text, value in (
        ("epoch", "Counter of the tensor-parallel group's membership.", status.epoch),
        ("step", "The last step that was run.", status.step),
        ("watermark", "The last step all of whose slots are committed to parity.", status.watermark),
        ("parity_bytes", "Host memory that parity (or copies) takes.", status.parity_bytes),
        ("disk_bytes", "Disk space that copies take.", status.disk_bytes),
        ("protected_tokens", "Tokens in the cache that parity covers.", status.protected_tokens),
        ("unprotected_tokens", "Tokens in the cache that parity does not cover.", status.unprotected_tokens),
        ("standbys", "Processes that wait to take a lost rank's place.", len(status.standbys)),
    ):
        yield GaugeMetricFamily(f"ghostserve_{name}", text, value=value)


def _ranks(status: EngineStatus) -> Metric:
    family = GaugeMetricFamily("ghostserve_rank_up", "1 while the rank's worker serves.", labels=["rank"])
    for rank in status.ranks:
        family.add_metric([str(rank.rank)], float(rank.state == "up"))
    return family


def _states(status: EngineStatus) -> Metric:
    family = GaugeMetricFamily("ghostserve_state", "1 for the engine's state.", labels=["state"])
    for state in STATES:
        family.add_metric([state], float(status.state == state))
    return family


def _counters(status: EngineStatus) -> Iterator[Metric]:
    """The engine's own counters; those of recoveries are summed from the records where it has none."""
    records = status.recoveries
    values: dict[str, float] = {
        "recoveries": len(records),
        "rebuilt_bytes": sum(record.bytes_rebuilt for record in records),
        "replayed_steps": sum(record.replayed_steps for record in records),
        "recomputed_requests": sum(record.recomputed_requests for record in records),
    }
    values |= {name.removesuffix("_total"): value for name, value in status.counters.items()}
    for name, value in sorted(values.items()):
        yield CounterMetricFamily(f"ghostserve_{name}", f"Total of {name.replace('_', ' ')}.", value=value)


def _recovery_seconds(records: list[RecoveryRecord]) -> Metric:
    buckets = [(str(bound), float(sum(record.seconds <= bound for record in records))) for bound in RECOVERY_BUCKETS]
    return HistogramMetricFamily(
        "ghostserve_recovery_seconds",
        "From detection to the resumed streams.",
        buckets=[*buckets, ("+Inf", float(len(records)))],
        sum_value=sum(record.seconds for record in records),
    )
