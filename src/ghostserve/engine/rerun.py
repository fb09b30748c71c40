"""The undisturbed run of the same schedule: recorded step plans, run again on fresh workers that nobody kills.

This is the oracle of every fault test. Two live runs may batch differently, and another batch rounds differently;
the recorded schedule takes that away, so that tokens and logprobs must be equal to the last bit. It shares no
code with recovery: no scheduler, no parity, no machine.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from ghostserve.engine import messages as msg
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.launch import WorkerConfig, make_group
from ghostserve.engine.modelspec import ModelSpec
from ghostserve.engine.placement import CPU, Placement
from ghostserve.engine.serving import LoggedStep
from ghostserve.errors import GhostServeError
from ghostserve.parity.memory import SharedRegion
from ghostserve.workers.group import Exited, WorkerGroup
from ghostserve.workers.rendezvous import host_rendezvous

__all__ = ["Difference", "Rerun", "Undisturbed", "rerun"]

_DEADLINE = 300.0
_POISON = 0xFF

M = TypeVar("M")


@dataclass(frozen=True)
class Difference:
    """A token (or its logprobs) that the disturbed run delivered and the undisturbed one does not draw."""

    step: int
    disturbed: msg.Sampled
    undisturbed: msg.Sampled | None


@dataclass(frozen=True)
class Rerun:
    """How many delivered tokens were compared, and where they differ."""

    compared: int
    differences: tuple[Difference, ...]


class Undisturbed:
    """A fresh group of workers that nobody kills; a context manager. It can run one recording after another.

    Raises `GhostServeError` if a worker fails: an undisturbed run has nobody to blame.
    """

    def __init__(self, spec: ModelSpec, placement: Placement = CPU) -> None:
        self._spec = spec
        self._placement = placement
        self._arenas = [
            SharedRegion.create(f"ghostserve-rerun-{r}", spec.cache_layout.total_bytes)
            for r in range(spec.tensor_parallel_size if placement.device == "cpu" else 0)
        ]
        self._group = make_group(
            WorkerConfig(
                spec=spec,
                protect="none",
                parity="none",
                arena_fds=tuple(arena.fd for arena in self._arenas),
                store_fds=(),
                num_parity_blocks=0,
                threads=WorkerConfig.threads_for(spec.tensor_parallel_size),
                device=placement.device,
                devices=placement.devices,
                data_path="none",
                environment=placement.environment,
            )
        )
        self._workers: list[int] = []

    def __enter__(self) -> "Undisturbed":
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        group = self._group
        self._workers = workers = [group.spawn() for _ in range(self._spec.tensor_parallel_size)]
        _collect(group, workers, msg.Hello)
        for rank, worker in enumerate(workers):
            group.send(worker, msg.Load(rank))
        _collect(group, workers, msg.Loaded)
        rendezvous = host_rendezvous()
        for worker in workers:
            group.send(worker, msg.Join(1, rendezvous.port, rendezvous.secret))
        _collect(group, workers, msg.Joined)

    def compare(
        self,
        recording: Sequence[LoggedStep],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Rerun:
        """Run `recording` and compare every delivered token and logprob, bit by bit."""
        used = {block for entry in recording for part in entry.plan.parts for block in part.blocks}
        for arena in self._arenas:
            _poison(arena, self._spec, used)
        if self._placement.device != "cpu":
            for worker in self._workers:
                self._group.send(worker, msg.Poison(tuple(sorted(used))))
        compared = 0
        differences: list[Difference] = []
        for done, entry in enumerate(recording):
            on_progress(done, len(recording))
            plan = msg.StepPlan(entry.plan.step, entry.plan.parts)
            for worker in self._workers:
                self._group.send(worker, msg.RunStep(1, plan))
            answer = _collect(self._group, self._workers[:1], msg.StepDone)[0]
            drawn = {sampled.request_id: sampled for sampled in answer.sampled}
            for request_id, delivered in (entry.accepted or {}).items():
                compared += 1
                again = drawn.get(request_id)
                if again != delivered:
                    differences.append(Difference(plan.step, delivered, again))
        on_progress(len(recording), len(recording))
        return Rerun(compared, tuple(differences))

    def close(self) -> None:
        self._group.close()
        for arena in self._arenas:
            arena.close()


def rerun(
    config: EngineConfig,
    spec: ModelSpec,
    recording: Sequence[LoggedStep],
    *,
    placement: Placement = CPU,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rerun:
    """Run `recording` on a fresh group and compare every delivered token and logprob, bit by bit.

    Raises `GhostServeError` if a worker fails: an undisturbed run has nobody to blame.
    """
    with Undisturbed(spec, placement) as undisturbed:
        return undisturbed.compare(recording, on_progress)


def _collect(group: WorkerGroup[msg.FromWorker], workers: Sequence[int], kind: type[M]) -> list[M]:
    """One message of `kind` from each worker, in their order."""
    found: dict[int, M] = {}
    deadline = time.monotonic() + _DEADLINE
    while len(found) < len(workers):
        if time.monotonic() > deadline:
            raise GhostServeError(f"no {kind.__name__} from every worker within {_DEADLINE:.0f} s")
        for worker, message in group.poll(1.0):
            if isinstance(message, Exited | msg.WorkerFailed):
                raise GhostServeError(f"worker {worker} of the undisturbed run failed: {message}")
            if isinstance(message, kind):
                found[worker] = message
    return [found[worker] for worker in workers]


def _poison(arena: SharedRegion, spec: ModelSpec, blocks: set[int]) -> None:
    """NaN in every slot that the recording uses: reading one before it is written shows."""
    for segment in spec.cache_layout.segments:
        for block in blocks:
            start = segment.offset + block * segment.block_stride
            arena.array[start : start + segment.block_stride] = _POISON
