"""Times of what a stream runs, and how much they vary."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ghostserve.bench.spread import Spread

__all__ = ["Clock", "Spread", "Stamp", "quiet"]


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
