"""Stock vLLM's CPU worker, but its ranks reduce through torch.distributed, as the plug-in's do.

vLLM's own way on the CPU is shared memory in which ranks spin, which a dead peer would never end (vllm/groups.py); with
fewer cores than ranks the two differ by more than the plug-in costs. What remains beside this worker is the plug-in.
"""

import os
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

__all__ = ["TorchDistributedWorker"]

_FILE = "file://"


class TorchDistributedWorker(CPUWorker):  # type: ignore[misc]  # vLLM is not there where types are checked
    """Given to vLLM as `worker_cls`."""

    def __init__(
        self, vllm_config: Any, local_rank: int, rank: int, distributed_init_method: str, **others: Any
    ) -> None:
        """vLLM uses shared memory unless ranks disagree on its name, the name of the file in which they meet.

        So each rank has a link of its own to that file.
        """
        if not distributed_init_method.startswith(_FILE):
            raise ValueError(f"ranks are expected to meet in a file, not by {distributed_init_method}")
        link = f"{distributed_init_method}-rank-{rank}"
        os.symlink(distributed_init_method.removeprefix(_FILE), link.removeprefix(_FILE))
        super().__init__(vllm_config, local_rank, rank, link, **others)
