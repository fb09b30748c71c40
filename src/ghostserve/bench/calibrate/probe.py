"""Short runs of one live engine that show what its steps and its recoveries cost."""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ghostserve.bench.calibrate.fits import Kill, Step
from ghostserve.bench.calibrate.watch import Watch
from ghostserve.bench.workload import Stream, run_streams
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.coordinator import Options
from ghostserve.engine.engine import Engine
from ghostserve.engine.rerun import Undisturbed
from ghostserve.errors import GhostServeError
from ghostserve.sampling import SamplingParams

__all__ = ["Probe"]

_SMALL_PROMPT, _DECODES = 8, 24
_BESIDE = 4
"""Streams that run while a standby starts; max_num_seqs is at least that."""
_REQUESTS = 3
_KILL_AT, _AFTER = 6, 16
_STANDBY_SECONDS = 120.0


@dataclass
class Probe:
    """One engine, recorded; a context manager. `strategy` is the simulator's name of what it protects with."""

    strategy: str
    config: EngineConfig
    steps: list[Step] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    start_seconds: float = 0.0
    standby_seconds: list[float] = field(default_factory=list)
    """From a kill until the next standby was ready."""
    slow: list[float] = field(default_factory=list)
    """How much longer a step took while a standby started, as parts of the step without."""

    def __post_init__(self) -> None:
        self.watch = Watch()
        self.engine = Engine(self.config, options=Options(record=True, observer=self.watch))
        self._run = self._streams = 0

    def __enter__(self) -> "Probe":
        began = time.monotonic()
        self.engine.start()
        self.start_seconds = time.monotonic() - began
        try:
            self.await_standbys()
            self._stream(2, self._chunk, 8)  # the first steps of a process are slower
            self.watch.clear()
        except BaseException:
            self.engine.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.stop()

    @property
    def _chunk(self) -> int:
        """Tokens of a whole prefill step that the context has room for, with something to draw after it."""
        return min(self.config.max_num_batched_tokens, self.engine.max_model_len // 2)

    @property
    def _standbys_ready(self) -> bool:
        return sum(s.state == "ready" for s in self.engine.status().standbys) >= self.config.standbys

    def await_standbys(self) -> None:
        deadline = time.monotonic() + _STANDBY_SECONDS
        while not self._standbys_ready:
            if time.monotonic() > deadline:
                raise GhostServeError(f"no {self.config.standbys} standbys were ready in {_STANDBY_SECONDS:.0f} s")
            time.sleep(0.02)

    def measure_steps(self) -> None:
        """One run: decodes of one and of all sequences, then clients that each send one request after another."""
        self.watch.clear()
        for count in (1, self.config.max_num_seqs):
            self._stream(count, _SMALL_PROMPT, _DECODES)
        asyncio.run(self._clients(max(1, 3 * self.config.max_num_seqs // 4)))
        self.steps += self.watch.steps(self._run)
        self._run += 1

    async def _clients(self, count: int) -> None:
        """Prefills beside decodes, of lengths up to a whole chunk: closed loops, so that no rate must be known.

        Outputs of up to half of that, so that with whole chunks of 256 tokens most steps decode alone, as in serving:
        what protection costs a step is not the same with prefills and without.
        """
        vocabulary = self.engine.spec.vocab_size

        async def client(index: int) -> None:
            for number in range(_REQUESTS):
                self._streams += 1
                length = 1 + (index * 61 + number * 97) % self._chunk
                drawn = 1 + (index * 37 + number * 53) % (self._chunk // 2)
                params = SamplingParams(temperature=0.0, max_tokens=drawn, ignore_eos=True)
                prompt = [(self._streams * 7919 + position) % vocabulary for position in range(length)]
                async for _ in self.engine.generate(f"{self.strategy}-{self._streams}", prompt, params):
                    continue

        await asyncio.gather(*(client(index) for index in range(count)))

    def measure_kill(self, context: int, *, counts: bool = True) -> None:
        """Fill the engine with contexts of that length, kill the last rank, wait until a standby is there again.

        Of a kill that does not count, the time until then is used to see what a standby's start costs.
        """
        self.watch.clear()
        struck: list[float] = []

        def strike(streams: list[Stream]) -> None:
            if not struck and min(len(s.tokens) for s in streams) >= _KILL_AT:
                struck.append(time.monotonic())
                os.kill(self.engine.status().ranks[-1].pid, signal.SIGKILL)

        self._stream(self.config.max_num_seqs, context, _AFTER, on_token=strike)
        kill = self.watch.kill(struck[0])
        if counts:
            self.kills.append(kill)
            self.await_standbys()
        else:
            self._watch_standby(struck[0])

    def verify(self) -> None:
        """Run everything again undisturbed. Raises `GhostServeError` if a token differs: then no figure counts."""
        with Undisturbed(self.engine.spec, self.engine.placement) as oracle:
            found = oracle.compare(self.engine.coordinator.recording)
        if found.differences or not found.compared:
            raise GhostServeError(
                f"{self.strategy}: {len(found.differences)} of {found.compared} tokens differ from the undisturbed run"
            )

    def _watch_standby(self, struck: float) -> None:
        """Keep streams decoding until the standby is there, and some more after that: what its start costs a step."""
        self.watch.clear()
        ready: list[float] = []

        def look(streams: list[Stream]) -> None:
            if not ready and self._standbys_ready:
                ready.append(time.monotonic())

        while not ready:
            if time.monotonic() > struck + _STANDBY_SECONDS:
                raise GhostServeError(f"no standby was ready in {_STANDBY_SECONDS:.0f} s")
            self._stream(_BESIDE, _SMALL_PROMPT, _DECODES, on_token=look)
        self.standby_seconds.append(ready[0] - struck)
        during = [s.seconds for s in self.watch.steps(0) if s.decodes == _BESIDE]
        self.watch.clear()
        for _ in range(2):
            self._stream(_BESIDE, _SMALL_PROMPT, _DECODES)
        after = [s.seconds for s in self.watch.steps(0) if s.decodes == _BESIDE]
        if during and after:
            self.slow.append(statistics.fmean(during) / statistics.fmean(after) - 1)

    def _stream(
        self,
        count: int,
        prompt: int,
        tokens: int,
        *,
        on_token: Callable[[list[Stream]], None] = lambda streams: None,
    ) -> None:
        self._streams += 1  # a request's name is its own
        name = f"{self.strategy}-{self._streams}"
        run_streams(self.engine, count=count, prompt_tokens=prompt, max_tokens=tokens, name=name, on_token=on_token)
