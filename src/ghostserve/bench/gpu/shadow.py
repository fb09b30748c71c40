"""Work of a model with and without checkpoints in its shadow, in turns."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ghostserve.bench.gpu.timing import Spread, quiet
from ghostserve.bench.gpu.world import World
from ghostserve.checkpoint import Checkpointer, FlushTask
from ghostserve.codes.backend import Backend
from ghostserve.cuda.path import CudaDataPath
from ghostserve.cuda.runtime import Stream
from ghostserve.errors import GhostServeError
from ghostserve.parity.ranges import SlotRange

__all__ = ["OverheadFigure", "Shadow", "Variant", "Work"]

EPOCH = 1
_DRAIN_SECONDS = 60.0

Flush = Callable[[int, Sequence[SlotRange]], None]
Work = Callable[[Flush], float]
"""Does the work once, calls `flush(chunk, ranges)` after each step was launched; the seconds it took."""


@dataclass(frozen=True)
class Variant:
    """`every`: this rank encodes each so many chunks; None: no checkpoints at all."""

    name: str
    every: int | None


@dataclass(frozen=True)
class OverheadFigure:
    """`without`, `protected`: seconds of the same work; `ratio`: of each round, protected / without.

    `drain`: seconds from the end of the work until its last flush was committed.
    """

    model: str
    work: str
    parity: str
    without: Spread
    protected: Spread
    ratio: Spread
    drain: Spread
    flushes: int


class Shadow:
    """One rank's checkpointer beside its model; `use` it around the work."""

    def __init__(self, world: World, stream: Stream, backend: Backend) -> None:
        """`stream`: the model's. The path pins the store, takes its ring and compiles its kernel."""
        self.world, self.stream = world, stream
        self._path = CudaDataPath(
            runtime=world.runtime,
            store=world.store,
            code=world.code,
            layout=world.layout,
            shard_map=world.shard_map,
            backend=backend,
        )
        self._path.connect(0, world.arenas)
        self._errors: list[Exception] = []
        self._tasks = 0
        self._checkpointer = Checkpointer(
            rank=0,
            encode=self._path.encode,
            current_epoch=lambda: world.store.epoch,
            on_done=lambda epoch, tasks: None,
            on_error=lambda epoch, task, error: self._errors.append(error),
        )

    def compare(
        self,
        model: str,
        name: str,
        work: Work,
        variants: Sequence[Variant],
        rounds: int,
        say: Callable[[str], None],
    ) -> Iterator[OverheadFigure]:
        """A figure for each variant; each round does the work without checkpoints and once in each variant's way."""
        everyone = (Variant("none", None), *variants)
        taken: dict[str, list[float]] = {v.name: [] for v in everyone}
        drains: dict[str, list[float]] = {v.name: [] for v in everyone}
        flushes: dict[str, int] = {}
        for number in range(-1, rounds):  # round -1 warms up
            say(f"{model}, {name}: " + (f"round {number + 1} of {rounds}" if number >= 0 else "warm-up"))
            # Each takes each place in turn: what drifts during a round hits all alike.
            shift = number % len(everyone)
            for variant in (*everyone[shift:], *everyone[:shift]):
                before = self._tasks
                with quiet():
                    seconds = work(self._flush(variant))
                behind = self.drain()
                flushes[variant.name] = self._tasks - before
                if number >= 0:
                    taken[variant.name].append(seconds)
                    drains[variant.name].append(behind)
        without = taken["none"]
        for variant in variants:
            own = taken[variant.name]
            yield OverheadFigure(
                model=model,
                work=name,
                parity=variant.name,
                without=Spread.of(without),
                protected=Spread.of(own),
                ratio=Spread.of([a / b for a, b in zip(own, without, strict=True)]),
                drain=Spread.of(drains[variant.name]),
                flushes=flushes[variant.name],
            )

    def verify(self, work: Work, ranges: Sequence[SlotRange], backend: Backend, *, samples: int) -> None:
        """Do the work once more with every chunk flushed, and compare `samples` slots of the store with the CPU's."""
        work(self._flush(Variant("all", 1)))
        self.drain()
        self.world.check(ranges, backend, samples=samples)

    def drain(self) -> float:
        """Wait for all flushes; the seconds it took. Raises what one of them raised."""
        began = time.perf_counter()
        if not self._checkpointer.drain(_DRAIN_SECONDS):
            raise GhostServeError(f"the checkpointer is not done {_DRAIN_SECONDS:.0f} s after the work")
        if self._errors:
            raise self._errors[0]
        return time.perf_counter() - began

    def _flush(self, variant: Variant) -> Flush:
        def flush(chunk: int, ranges: Sequence[SlotRange]) -> None:
            if variant.every is None or chunk % variant.every:
                return
            after = self._path.mark()
            self._tasks += 1
            self._checkpointer.submit(EPOCH, FlushTask(self._tasks, chunk, 0, tuple(ranges)), after)

        return flush

    def close(self) -> None:
        self._checkpointer.close()
        self._path.close()


@contextmanager
def shadow(world: World, stream: Stream, backend: Backend) -> Iterator[Shadow]:
    """A `Shadow` that is closed in the end."""
    own = Shadow(world, stream, backend)
    try:
        yield own
    finally:
        own.close()
