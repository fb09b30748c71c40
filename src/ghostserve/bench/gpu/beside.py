"""Checkpoints back to back while the device multiplies matrices on another stream: what each loses to the other."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ghostserve.bench.gpu.matmuls import Matmuls, Product
from ghostserve.bench.gpu.timing import Spread, quiet

if TYPE_CHECKING:
    from ghostserve.bench.gpu.ways import Way, Ways

__all__ = ["BesideFigure", "bench_beside"]


@dataclass(frozen=True)
class BesideFigure:
    """`alone`, `beside`: seconds of all products; `seconds`: of one checkpoint beside them; `copy_all` likewise.

    `checkpoints`: as many ended while the products ran, on average over the rounds.
    """

    code: str
    way: str
    alone: Spread
    beside: Spread
    checkpoints: float
    seconds: Spread
    copy_all: Spread

    @property
    def slow_down(self) -> float:
        return self.beside.median / self.alone.median

    @property
    def lost_seconds(self) -> float:
        """By how much one checkpoint sets the products back."""
        return (self.beside.median - self.alone.median) / max(1.0, self.checkpoints)

    @property
    def faster(self) -> float:
        return self.copy_all.median / self.seconds.median


def bench_beside(
    ways: "Ways", compared: Sequence["Way"], matmuls: Matmuls, say: Callable[[str], None]
) -> list[BesideFigure]:
    """Each of `compared` (the first copies all shards out) beside the products, in turns with the products alone."""
    runtime = ways.world.runtime
    product = Product(matmuls, runtime.device)
    stream = runtime.stream()  # above the checkpoints' priority, as the model's

    def run() -> float:
        with runtime.use(stream):
            began = time.perf_counter()
            for _ in range(matmuls.count):
                product.run()
            stream.synchronize()
            return time.perf_counter() - began

    alone: dict[str, list[float]] = {way.name: [] for way in compared}
    shared: dict[str, list[float]] = {way.name: [] for way in compared}
    counts: dict[str, list[int]] = {way.name: [] for way in compared}
    each: dict[str, list[float]] = {way.name: [] for way in compared}
    run()
    say(f"{ways.world.code}: {len(compared)} ways beside matrix products, {matmuls.rounds} rounds")
    with quiet():
        for _ in range(matmuls.rounds):
            for way in compared:
                alone[way.name].append(run())
                loop = _Loop(way, ways.chunks)
                try:
                    shared[way.name].append(run())
                finally:
                    taken = loop.stop()
                counts[way.name].append(len(taken))
                each[way.name] += taken
    copy_all = Spread.of(each[compared[0].name])
    return [
        BesideFigure(
            code=str(ways.world.code),
            way=way.name,
            alone=Spread.of(alone[way.name]),
            beside=Spread.of(shared[way.name]),
            checkpoints=sum(counts[way.name]) / matmuls.rounds,
            seconds=Spread.of(each[way.name]),
            copy_all=copy_all,
        )
        for way in compared
    ]


class _Loop:
    """Runs a way over and over on a thread of its own, as a checkpointer would, until it is stopped."""

    def __init__(self, way: "Way", chunks: int) -> None:
        self._way, self._chunks = way, chunks
        self._stop, self._begun = threading.Event(), threading.Event()
        self._taken: list[float] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="bench-checkpoints", daemon=True)
        self._thread.start()
        self._begun.wait()

    def stop(self) -> list[float]:
        """The seconds of each run that ended; raises what one of them raised."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._taken

    def _run(self) -> None:
        try:
            number = 0
            self._begun.set()
            while not self._stop.is_set() or not self._taken:
                began = time.perf_counter()
                self._way.run(number % self._chunks)
                self._taken.append(time.perf_counter() - began)
                number += 1
        except Exception as error:  # noqa: BLE001 - raised again by `stop`, on the thread that measures
            self._error = error
