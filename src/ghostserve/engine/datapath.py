"""How KV becomes parity and parity becomes KV again: what a worker needs of it, and the way over host memory."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from ghostserve.checkpoint.encoding import encode_ranges
from ghostserve.checkpoint.scrubber import Scrubber, ScrubReport
from ghostserve.codes import Backend, Code, make_backend
from ghostserve.parity import paging
from ghostserve.parity.arena import Arena
from ghostserve.parity.geometry import CacheLayout, ShardMap
from ghostserve.parity.ranges import SlotRange
from ghostserve.parity.store import ParityStore
from ghostserve.recovery.rebuild import RebuildReport, rebuild
from ghostserve.recovery.recompute import recompute

__all__ = ["DataPath", "HostDataPath"]


class DataPath(Protocol):
    """One rank's way between the caches of its group and the parity store."""

    name: str
    """For the status: "host", "cuda-ipc", ..."""

    def encode(
        self, epoch: int, ranges: Sequence[SlotRange], after: object | None, on_stage: Callable[[str], None]
    ) -> None:
        """Encode the slots of `ranges` and commit them under `epoch`; returns when they are committed.

        Called on the checkpointer's thread. `after`: what `mark` gave; the slots are written once it has happened.
        `on_stage` and errors: as `encode_ranges`.
        """

    def stage(self, epoch: int, ranges: Sequence[SlotRange]) -> None:
        """Main thread of every rank, right after a step with flush tasks was launched: `ranges` are all their slots.

        For paths where each rank has to do something before its peers can read its shards. Comes before `mark`.
        """

    def mark(self) -> object | None:
        """Main thread, right after a step was launched: what `encode` has to wait for before it reads the step's slots.

        None where a step has ended when its call returns.
        """

    def rebuild(
        self, lost_ranks: Collection[int], ranges: Sequence[SlotRange], targets: Collection[int]
    ) -> RebuildReport:
        """Refill the slots of `ranges` in the arenas of `targets`, of which all must be lost; see `rebuild`."""

    def close(self) -> None:
        """Give back what the path holds, not what it was given. No flush may be under way. Idempotent."""


class HostDataPath:
    """Arenas that host memory reaches: shards are gathered, encoded and decoded by the CPU."""

    name = "host"

    def __init__(
        self,
        *,
        store: ParityStore,
        code: Code,
        arenas: Sequence[Arena],
        layout: CacheLayout,
        shard_map: ShardMap,
        backend: Backend | None = None,
    ) -> None:
        """`arenas`: one a rank, this rank's own among them. Compiles what it needs now, not in the first flush."""
        self._store, self._code, self._arenas = store, code, arenas
        self._layout, self._shard_map = layout, shard_map
        self._backend = make_backend() if backend is None else backend
        self._backend.warm_up(rows=code.rows, slot_bytes=layout.slot_bytes)
        paging.warm_up()

    def encode(
        self, epoch: int, ranges: Sequence[SlotRange], after: object | None, on_stage: Callable[[str], None]
    ) -> None:
        """See `DataPath.encode`; `after` is None, as steps on the CPU have ended when their call returns."""
        encode_ranges(
            store=self._store,
            code=self._code,
            backend=self._backend,
            arenas=self._arenas,
            layout=self._layout,
            shard_map=self._shard_map,
            epoch=epoch,
            ranges=ranges,
            on_stage=on_stage,
        )

    def stage(self, epoch: int, ranges: Sequence[SlotRange]) -> None:
        """Nothing: peers read shared memory."""

    def mark(self) -> object | None:
        return None

    def rebuild(
        self, lost_ranks: Collection[int], ranges: Sequence[SlotRange], targets: Collection[int]
    ) -> RebuildReport:
        """See `DataPath.rebuild`."""
        return rebuild(
            store=self._store,
            code=self._code,
            backend=self._backend,
            arenas=self._arenas,
            layout=self._layout,
            shard_map=self._shard_map,
            lost_ranks=lost_ranks,
            targets=targets,
            ranges=ranges,
        )

    def recompute(self, rank: int, ranges: Sequence[SlotRange], run: Callable[[], object], keep: bool) -> bool:
        """Have `run` fill the slots of `ranges` of this rank's cache again; see `ghostserve.recovery.recompute`."""
        return recompute(
            store=self._store,
            backend=self._backend,
            arena=self._arenas[rank],
            layout=self._layout,
            shard=self._shard_map.shard_of(rank),
            ranges=ranges,
            run=run,
            keep=keep,
        )

    def scrub(self, ranges: Sequence[SlotRange]) -> Iterator[ScrubReport]:
        """Verify the committed slots of `ranges`, a piece with each `next`; see `ghostserve.checkpoint.Scrubber`.

        Whether a faulty slot was its request's all the time is for the caller to say, once the report has come.
        """
        scrubber = Scrubber(
            store=self._store,
            backend=self._backend,
            arenas=self._arenas,
            layout=self._layout,
            shard_map=self._shard_map,
            held=lambda slot: True,
        )
        return scrubber.walk(ranges)

    def close(self) -> None:
        return None
