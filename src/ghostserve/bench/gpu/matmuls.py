"""What keeps a device busy in a model's place: products of large matrices."""

from dataclasses import dataclass

import torch

from ghostserve.bench.gpu.timing import Clock
from ghostserve.cuda.runtime import Event, Runtime

__all__ = ["Matmuls", "Product", "Step"]


@dataclass(frozen=True)
class Matmuls:
    """`count` products of two square bf16 matrices, `rounds` times."""

    size: int = 8192
    count: int = 48
    rounds: int = 5


class Product:
    """One of them."""

    def __init__(self, matmuls: Matmuls, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(4)
        shape = (matmuls.size, matmuls.size)
        self._a, self._b = (
            torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(generator=generator) for _ in range(2)
        )
        self._c = torch.empty_like(self._a)

    def run(self) -> None:
        torch.mm(self._a, self._b, out=self._c)


class Step:
    """Products that stand for a model's step: what comes behind it may not begin before they have ended."""

    def __init__(self, runtime: Runtime, matmuls: Matmuls) -> None:
        self._runtime, self._count = runtime, matmuls.count
        self._clock, self._product = Clock(runtime.device), Product(matmuls, runtime.device)
        self._stream, self._ended = runtime.stream(), runtime.event()  # above the checkpoints' priority, as the model's
        self._began = self._done = self._clock.stamp()

    def launch(self) -> Event:
        """What has happened when the step has ended. The device must have been idle."""
        with self._runtime.use(self._stream):
            self._began = self._clock.stamp()
            for _ in range(self._count):
                self._product.run()
            self._done = self._clock.stamp()
            self._ended.record(self._stream)
        return self._ended

    def seconds(self) -> float:
        """How long the last one took the device; waits for its end."""
        return self._clock.seconds(self._began, self._done)
