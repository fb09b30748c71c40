"""Stock vLLM's CPU worker, but its ranks reduce through the same memory as the plug-in's do.

A sum's bits depend on the order of its addends, which the collective chooses: over the same one tokens must be equal,
and what remains of the time is the plug-in. Nothing here can recover: a rank that dies is waited for for ever.
"""

from vllm.v1.worker.cpu_worker import CPUWorker

from ghostserve.vllm import groups
from ghostserve.vllm.host_links import HostLinks

__all__ = ["SharedReduceWorker"]


class SharedReduceWorker(CPUWorker):  # type: ignore[misc]  # vLLM is not there where types are checked
    """Given to vLLM as `worker_cls`."""

    def init_device(self) -> None:
        """vLLM's groups are made in here."""
        super().init_device()
        self._links = HostLinks()
        self._links.open(1, groups.coordinators(), self.device)
