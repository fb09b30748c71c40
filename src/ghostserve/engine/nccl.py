"""The communicator of ranks on CUDA devices.

A collective is launched and returns at once; nothing ever raises because a peer is gone. So `release`, on the thread
that hears of it, fences the epoch and then aborts the communicator; `settle`, on the thread that waits for the device,
looks at the fence before anybody uses what was computed (see `fence`).
"""

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store  # type: ignore[attr-defined]

from ghostserve.engine.communicator import JOIN_TIMEOUT, Communicator
from ghostserve.engine.exchange import sum_by_exchange
from ghostserve.engine.fence import Fence
from ghostserve.workers.nccl import Progress
from ghostserve.workers.rendezvous import secret_prefix

__all__ = ["NcclCommunicator"]

_TIMEOUT = timedelta(seconds=1800)


class NcclCommunicator(Communicator):
    """Collectives are asynchronous on torch's current stream."""

    def __init__(self, world_size: int) -> None:
        super().__init__(world_size)
        self._fence = Fence()
        self._progress = Progress()
        self._shared = False
        """Some ranks of the group share a device."""

    def release(self, epoch: int) -> None:
        """See `Communicator.release`: when this returns, whatever hung on the device has ended, with garbage."""
        self._fence.raise_to(epoch)

    def settle(self) -> None:
        """See `Communicator.settle`. An error of the device itself is raised as it is: that is no peer's fault."""
        # The model's stream only: a flush that is under way on another must not hold the model up.
        torch.cuda.current_stream().synchronize()
        self._fence.check()
        self._progress.clear()

    def warm_up(self) -> None:
        """What a process's first communicator costs beyond the next ones (loading NCCL, looking at the machine)."""
        device = torch.device("cuda", torch.cuda.current_device())
        dist.init_process_group("nccl", store=HashStore(), rank=0, world_size=1, device_id=device)
        dist.all_reduce(torch.ones(1, device=device))
        torch.cuda.current_stream().synchronize()
        dist.destroy_process_group()
        dist.distributed_c10d._world.group_count = 0

    @property
    def waiting(self) -> bool:
        """Joining, or with the device in a collective; a device in any other kernel is busy, however long it takes."""
        return self.in_collective or self._progress.in_collective

    def _guard(self, store: Store, epoch: int, secret: str) -> Store:
        # NCCL's threads use the store on their own: nothing of Python in their way.
        return PrefixStore(secret_prefix(epoch, secret), store)

    def _connect(self, store: Store, epoch: int) -> None:
        # NCCL's own start waits for ever for a member that never comes: have everyone here first.
        device = torch.device("cuda", torch.cuda.current_device())
        everyone = [f"here-{rank}" for rank in range(self.world_size)]
        store.set(everyone[self.rank], str(torch.cuda.get_device_properties(device).uuid))
        store.wait(everyone, JOIN_TIMEOUT)
        self._shared = len({store.get(key) for key in everyone}) < self.world_size
        # Flushes run at the lowest priority: they yield to the sums as they do to the model.
        options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
        options._timeout = _TIMEOUT
        dist.init_process_group(
            "nccl",
            store=store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=_TIMEOUT,
            device_id=device,
            pg_options=options,
        )
        group = dist.group.WORLD
        assert group is not None
        self._fence.open(epoch, group._get_backend(device).abort)
        if self.world_size > 1:
            # The first collectives set connections up: here, where a failure is a failed join.
            warm = torch.ones(1, device=device)
            parts = [torch.empty_like(warm) for _ in range(self.world_size)] if self.rank == 0 else None
            with self._fence.launching():
                self._sum(warm)
                dist.gather(warm, parts, dst=0)
            torch.cuda.current_stream().synchronize()
            self._fence.check()

    def _disconnect(self) -> None:
        self._fence.close()  # a healthy end of the group would wait for peers that may be gone
        self._progress.clear()
        super()._disconnect()

    def _sum(self, tensor: torch.Tensor) -> None:
        if self._shared:
            sum_by_exchange(tensor, self.world_size)
        else:
            super()._sum(tensor)

    def _run(self, collective: Callable[[], object]) -> None:
        if self._silent:
            return
        before, after = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]
        with self._fence.launching():
            before.record()
            super()._run(collective)
            after.record()
        self._progress.launched(before, after)
