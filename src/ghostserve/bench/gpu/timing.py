"""Times of what a stream runs, and how much they vary."""

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Clock", "Spread", "Stamp", "quiet"]


@dataclass(frozen=True)
class Spread:
    """Of repeated measurements of one thing."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values), len(values))

    def times(self, factor: float) -> "Spread":
        """The same in another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.samples)


Stamp = torch.cuda.Event | float


class Clock:
    """Takes time stamps in the order of the current stream: CUDA events; on the CPU the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stamp(self) -> Stamp:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, first: Stamp, last: Stamp) -> float:
        """Between two stamps; waits until the later one has happened."""
        if isinstance(first, float) or isinstance(last, float):
            assert isinstance(first, float)
            assert isinstance(last, float)
            return last - first
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3

    def wait(self) -> None:
        """Until the device has done all it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Python's garbage collector, whose pauses would be measured with whatever they hit."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
