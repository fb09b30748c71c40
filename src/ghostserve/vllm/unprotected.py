"""What is said about an engine that is served as stock vLLM does, because something in it can't be protected."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ghostserve.status import EngineStatus
from ghostserve.vllm.config import plugin_config
from ghostserve.vllm.status_file import StatusPublisher, status_path
from ghostserve.vllm.support import Refusal

if TYPE_CHECKING:
    from vllm.config import VllmConfig

__all__ = ["publish_unprotected"]


def publish_unprotected(vllm_config: "VllmConfig", refusals: Sequence[Refusal]) -> None:
    """Publish once, for the status page and the metrics, why nothing is protected; valid while this process lives."""
    path = status_path(plugin_config(vllm_config).status_path, vllm_config.instance_id)
    StatusPublisher(path).publish(
        EngineStatus(
            state="serving",
            epoch=0,
            step=0,
            watermark=0,
            ranks=[],
            data_path="none",
            parity="none",
            placement=[f"{refusal.feature}: {refusal.reason}" for refusal in refusals],
            counters={"unprotected_features": float(len(refusals))},
        )
    )
