"""The most adversarial order that CUDA allows: nothing runs before someone waits for it, and then no more than that.

What the data path forgot to wait for has then not happened. `deaf` streams ignore `wait_event`: the twin that shows it.
"""

import contextlib

from fake_runtime import FakeEvent, FakeRuntime, FakeStream
from host_kernels import HostKernels


class LazyStream(FakeStream):
    def __init__(self, runtime, name):
        super().__init__(runtime, name)
        self.work, self.ran = [], 0

    def run_to(self, position):
        while self.ran < position:
            self.ran += 1
            self.work[self.ran - 1]()

    def wait_event(self, event):
        super().wait_event(event)
        stream, position = event.recorded
        if not self.runtime.deaf:
            self.work.append(lambda: stream.run_to(position))

    def synchronize(self):
        super().synchronize()
        self.run_to(len(self.work))


class LazyEvent(FakeEvent):
    def record(self, stream=None):
        super().record(stream)
        stream = stream or self.runtime.current_stream()
        self.recorded = stream, len(stream.work)

    def synchronize(self):
        super().synchronize()
        stream, position = self.recorded
        stream.run_to(position)


class LazyRuntime(FakeRuntime):
    def __init__(self, *, deaf=False):
        super().__init__()
        self.deaf = deaf
        self._default = LazyStream(self, "default")

    def stream(self, *, low_priority=False):
        return LazyStream(self, super().stream(low_priority=low_priority).name)

    def event(self, *, spins=False):
        return LazyEvent(self, super().event().name)

    def copy(self, target, source, nbytes, stream):
        stream.work.append(lambda: FakeRuntime.copy(self, target, source, nbytes, stream))

    def copy_rows(self, *arguments):
        arguments[-1].work.append(lambda: FakeRuntime.copy_rows(self, *arguments))

    def fill(self, target, byte, nbytes, stream):
        stream.work.append(lambda: FakeRuntime.fill(self, target, byte, nbytes, stream))

    def lazy(self, action):
        """Do this when the current stream comes to it."""
        self.current_stream().work.append(action)

    @contextlib.contextmanager
    def model(self):
        """Torch's current stream is the model's."""
        with self.use(self.stream()) as stream:
            yield stream


class LazyKernels(HostKernels):
    """Launches are queued on the runtime's current stream."""

    def __init__(self, layout, runtime):
        super().__init__(layout)
        self.runtime = runtime

    def bind(self, plan, shards, *, checksums=True):
        return _Queued(self.runtime, super().bind(plan, shards))


class _Queued:
    def __init__(self, runtime, bound):
        self.runtime, self.bound = runtime, bound

    def launch(self, index, count, sums=None, *, programs=None):
        self.runtime.lazy(lambda: self.bound.launch(index, count, sums, programs=programs))
