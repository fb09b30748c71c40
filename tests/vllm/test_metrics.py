"""The metrics of a published status, in a registry and on vLLM's own /metrics."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from statuses import make_status

from ghostserve.vllm.metrics import metrics_registered
from ghostserve.vllm.middleware import FaultToleranceMiddleware
from ghostserve.vllm.status_file import StatusPublisher


@pytest.fixture(autouse=True)
def one_api_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "status.json"


def samples(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(f",{key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("ghostserve_")
    }


def scrape(registry: CollectorRegistry) -> dict[str, float]:
    return samples(generate_latest(registry).decode())


def test_a_scrape_reads_what_is_published(path: Path) -> None:
    registry = CollectorRegistry()
    publisher = StatusPublisher(path)
    with metrics_registered(path, registry):
        assert scrape(registry) == {}
        publisher.publish(make_status("recovering"))
        found = scrape(registry)
        publisher.publish(make_status(step=50))
        assert scrape(registry)["ghostserve_step"] == 50
    assert scrape(registry) == {}
    assert (found["ghostserve_epoch"], found["ghostserve_step"], found["ghostserve_watermark"]) == (2, 41, 40)
    assert (found["ghostserve_rank_up,rank=0"], found["ghostserve_rank_up,rank=1"]) == (1, 0)
    assert (found["ghostserve_state,state=recovering"], found["ghostserve_state,state=serving"]) == (1, 0)
    assert (found["ghostserve_recoveries_total"], found["ghostserve_rebuilt_bytes_total"]) == (1, 1000)
    assert found["ghostserve_unprotected_features_total"] == 3
    assert found["ghostserve_recovery_seconds_sum"] == 1.5


def test_several_api_servers_are_warned(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    StatusPublisher(path).publish(make_status())
    registry = CollectorRegistry()
    with metrics_registered(path, registry):
        assert scrape(registry) == {}
    assert "several API servers" in caplog.text


def test_on_vllms_own_metrics_page(path: Path) -> None:
    pytest.importorskip("vllm")
    from fastapi import FastAPI
    from vllm.entrypoints.serve.instrumentator.metrics import attach_router

    app = FastAPI()
    attach_router(app)
    app.add_middleware(FaultToleranceMiddleware)
    settings = {"ghostserve": {"status_path": str(path)}}
    app.state.vllm_config = SimpleNamespace(additional_config=settings, instance_id="1")
    StatusPublisher(path).publish(make_status())
    with TestClient(app) as http:
        assert samples(http.get("/metrics").text)["ghostserve_step"] == 41
    assert scrape(REGISTRY) == {}
