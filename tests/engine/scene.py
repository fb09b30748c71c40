"""Fault scripts that read as prose: who streams, when who is struck, how it ends.

    scene = stage.scene()
    scene.stream(6, prompt=100, tokens=40)
    scene.when(decoding(5)).kill(rank=1)
    scene.finish()
    scene.assert_undisturbed()

A `Stage` is an engine that lives through several scenes. Strikes come from the engine's observer, on the coordinator's
thread: at a moment of the schedule, not of the clock.
"""

import contextlib
import gc
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from ghostserve.engine.config import EngineConfig
from ghostserve.engine.coordinator import Options
from ghostserve.engine.engine import Engine
from ghostserve.engine.launch import nursery
from ghostserve.engine.messages import StepPlan
from ghostserve.engine.modelspec import inspect_checkpoint
from ghostserve.engine.placement import place
from ghostserve.engine.rerun import Rerun, Undisturbed
from ghostserve.engine.serving import LoggedStep
from ghostserve.errors import GhostServeError
from ghostserve.sampling import SamplingParams, TokenOutput
from ghostserve.status import RecoveryRecord
from ghostserve.workers.failpoints import ENVIRONMENT
from ghostserve.workers.rendezvous import host_rendezvous

__all__ = [
    "Scene",
    "Stage",
    "Stream",
    "anything",
    "decoding",
    "phase",
    "prefilling",
    "replaying",
    "resumed",
    "running",
    "start_nursery",
]

PATIENCE = {"cpu": 90.0, "cuda": 150.0}
"""Seconds, by device: where nothing is at hand a nursery has its imports to do, and a standby on CUDA also its context,
NCCL and compiled kernels."""
DEFAULTS = {
    "device": "cpu",
    "kv_cache_memory": 1 << 22,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "standbys": 2,
}

Moment = Callable[[str, dict[str, object]], bool]
"""Says of something that the observer was told whether it is the one that is waited for."""


# ---- moments


def anything(name: str, details: dict[str, object]) -> bool:
    return True


def decoding(count: int) -> Moment:
    """A step is sent out in which some request draws its token number `count` (from 0) or a later one."""

    def is_it(name: str, details: dict[str, object]) -> bool:
        return _is_step(name, details, replay=False) and any(
            part.draw is not None and part.draw.counter >= count for part in _plan(details).parts
        )

    return is_it


def prefilling(at_least: int) -> Moment:
    """A step is sent out with a prefill chunk that begins at token `at_least` or later and is not the prompt's last."""

    def is_it(name: str, details: dict[str, object]) -> bool:
        return _is_step(name, details, replay=False) and any(
            part.draw is None and part.start >= at_least for part in _plan(details).parts
        )

    return is_it


def replaying(name: str, details: dict[str, object]) -> bool:
    """A step is sent out again."""
    return _is_step(name, details, replay=True)


def phase(wanted: str) -> Moment:
    """The recovery enters this phase."""
    return lambda name, details: name == "phase" and details["phase"] == wanted


def resumed(name: str, details: dict[str, object]) -> bool:
    return name == "resumed"


def _is_step(name: str, details: dict[str, object], *, replay: bool) -> bool:
    return name == "step" and details["replay"] is replay


def _plan(details: dict[str, object]) -> StepPlan:
    plan = details["plan"]
    assert isinstance(plan, StepPlan)
    return plan


# ---- streams


@dataclass
class Stream:
    """One client and what it received."""

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    outputs: list[TokenOutput] = field(default_factory=list)
    error: GhostServeError | None = None
    over: threading.Event = field(default_factory=threading.Event)
    aborted: bool = False

    def take(self, item: TokenOutput | GhostServeError) -> None:
        assert not self.over.is_set(), f"{self.request_id} was sent something after its end: {item}"
        if isinstance(item, GhostServeError):
            self.error = item
        else:
            self.outputs.append(item)
        if isinstance(item, GhostServeError) or item.finish_reason is not None:
            self.over.set()

    @property
    def tokens(self) -> list[int]:
        return [output.token_id for output in self.outputs]


# ---- strikes


@dataclass
class _Strike:
    moment: Moment
    act: Callable[[], None]


class When:
    """`scene.when(MOMENT)`: what to do then, once. Several in a row wait for each other: see `Scene.then`."""

    def __init__(self, stage: "Stage", moment: Moment) -> None:
        self._stage, self._moment = stage, moment

    def kill(self, *ranks: int) -> None:
        self.do(lambda: [self._stage.signal(rank, signal.SIGKILL) for rank in ranks])

    def stop(self, rank: int) -> None:
        self.do(lambda: self._stage.signal(rank, signal.SIGSTOP))

    def arm(self, point: str, action: str = "kill") -> None:
        """Set a failpoint."""
        self.do(lambda: self._stage.arm(point, action))

    def do(self, act: Callable[[], object]) -> None:
        self._stage.strikes.append(_Strike(self._moment, lambda: act() and None))


# ---- the stage


class Stage:
    """A running engine, the failpoints' folder, and undisturbed workers to compare with."""

    def __init__(self, config: EngineConfig, folder: Path, *, skip_rebuild: bool = False) -> None:
        self.config = config
        self.strikes: list[_Strike] = []
        self.problems: list[BaseException] = []
        self.told: list[tuple[str, dict[str, object]]] = []
        self._folder = folder
        self._random = random.Random(7)
        self._requests = 0
        self._undisturbed: Undisturbed | None = None
        self.engine = Engine(config, options=Options(observer=self._observe, record=True, skip_rebuild=skip_rebuild))

    def scene(self, standbys: int = 1) -> "Scene":
        """A new scene begins with all ranks up and (where the settings have any) `standbys` of them ready."""
        wanted = min(standbys, self.config.standbys)
        self.until(lambda: self.calm(wanted), "the engine and its standbys never were ready")
        self.strikes.clear()
        self.told.clear()
        return Scene(self)

    def calm(self, standbys: int) -> bool:
        status = self.engine.status()
        ready = sum(s.state == "ready" for s in status.standbys)
        return (
            status.state == "serving"
            and all(rank.state == "up" for rank in status.ranks)
            and ready >= standbys
            and status.num_running + status.num_waiting == 0
        )

    def until(self, condition: Callable[[], object], complaint: str) -> None:
        deadline = time.monotonic() + PATIENCE[self.engine.placement.device]
        while not condition():
            if self.engine.coordinator.failure is not None:
                raise self.engine.coordinator.failure
            assert time.monotonic() < deadline, f"{complaint}; {self.engine.status()}"
            time.sleep(0.01)

    def signal(self, rank: int, number: signal.Signals) -> None:
        driver = self.engine.coordinator._driver
        os.kill(driver._group.pid(driver.machine.members[rank]), number)

    def arm(self, point: str, action: str = "kill") -> None:
        # Written elsewhere first: a worker must not read a half-written file.
        scratch = self._folder.parent / f"{self._folder.name}-{point}.new"
        scratch.write_text(action)
        scratch.rename(self._folder / point)

    def armed(self) -> list[str]:
        return sorted(file.name for file in self._folder.iterdir())

    def request_id(self) -> str:
        self._requests += 1
        return f"r{self._requests}"

    def prompt(self, length: int) -> tuple[int, ...]:
        return tuple(self._random.randrange(2, self.engine.spec.vocab_size) for _ in range(length))

    def compare(self, recording: list[LoggedStep]) -> Rerun:
        """Run a recording on workers that were never disturbed."""
        assert not self.armed(), f"never hit: {self.armed()}"  # also: the undisturbed must not hit them
        if self._undisturbed is None:
            self._undisturbed = Undisturbed(self.engine.spec, self.engine.placement).__enter__()
        return self._undisturbed.compare(recording)

    def close(self) -> None:
        self.engine.stop()
        if self._undisturbed is not None:
            self._undisturbed.close()

    def _observe(self, name: str, details: dict[str, object]) -> None:
        self.told.append((name, details))
        try:
            for strike in list(self.strikes):
                if strike.moment(name, details):
                    self.strikes.remove(strike)
                    strike.act()
        except BaseException as error:  # noqa: BLE001 - the test's own mistake: tell it there, not on this thread
            self.problems.append(error)


class Scene:
    """What happens on a stage between two calm moments."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.engine = stage.engine
        self.streams: list[Stream] = []
        self._first_step = stage.engine.status().step
        self._earlier = len(stage.engine.coordinator._driver.records)

    # ---- what is played

    def stream(
        self, count: int = 1, *, prompt: int | tuple[int, ...] = 30, tokens: int = 30, **params: object
    ) -> list[Stream]:
        """Start `count` clients; every other one samples with a seed, the rest are greedy. All ask for logprobs.

        `prompt`: the first one's length, each next one's is one more; or the prompt itself.
        """
        fresh = []
        for i in range(count):
            sampled = {"temperature": 0.8, "top_p": 0.9, "seed": 100 + i} if i % 2 else {"temperature": 0.0}
            wanted = {"max_tokens": tokens, "ignore_eos": True, "logprobs": 3} | sampled | params
            ids = self.stage.prompt(prompt + i) if isinstance(prompt, int) else prompt
            fresh.append(Stream(self.stage.request_id(), ids, SamplingParams(**wanted)))
        self.streams += fresh
        for stream in fresh:
            request = self.engine.make_request(stream.request_id, stream.prompt, stream.params)
            self.engine.coordinator.submit(request, stream.take)
        return fresh

    def when(self, moment: Moment) -> When:
        return When(self.stage, moment)

    def arm(self, point: str, action: str = "kill") -> None:
        """Set a failpoint now."""
        self.stage.arm(point, action)

    def abort(self, stream: Stream) -> None:
        """The client goes away."""
        stream.aborted = True
        self.engine.coordinator.abort(stream.request_id)

    def kill(self, *ranks: int) -> None:
        """Strike now, and wait until it is noticed."""
        epoch = self.engine.status().epoch
        for rank in ranks:
            self.stage.signal(rank, signal.SIGKILL)
        self.stage.until(lambda: self.engine.status().epoch > epoch, "the death was not noticed")

    def leave(self) -> None:
        """All that was to be seen has been seen: the clients that are left need no more tokens."""
        for stream in self.streams:
            if not stream.over.is_set():
                self.abort(stream)
        self.finish()

    def finish(self, *, recoveries: int | None = None) -> None:
        """All streams run to their end; every strike has struck, and the engine serves again."""
        for stream in (s for s in self.streams if not s.aborted):
            self.stage.until(stream.over.is_set, f"{stream.request_id} never ended")
        self.stage.until(lambda: self.engine.status().state == "serving", "the engine never served again")
        assert not self.stage.problems, self.stage.problems
        assert not self.stage.strikes, f"{len(self.stage.strikes)} strikes never had their moment"
        assert not self.stage.armed(), f"never hit: {self.stage.armed()}"
        if recoveries is not None:
            assert len(self.recoveries) == recoveries, [record.reason for record in self.recoveries]

    # ---- what came of it

    @property
    def recoveries(self) -> list[RecoveryRecord]:
        return self.engine.coordinator._driver.records[self._earlier :]

    @property
    def recording(self) -> list[LoggedStep]:
        return [entry for entry in self.engine.coordinator.recording if entry.plan.step > self._first_step]

    @property
    def bytes_wiped(self) -> int:
        return sum(details["bytes"] for name, details in self.stage.told if name == "wiped")

    def compare(self) -> Rerun:
        return self.stage.compare(self.recording)

    def assert_delivered(self) -> None:
        """Each client has what was recorded for it, once and in order, and all that it asked for."""
        recorded: dict[str, list[tuple[object, ...]]] = {}
        for entry in self.recording:
            for request_id, drawn in (entry.accepted or {}).items():
                recorded.setdefault(request_id, []).append((drawn.token_id, drawn.logprob, drawn.top_logprobs))
        for stream in self.streams:
            assert stream.error is None, f"{stream.request_id}: {stream.error}"
            received = [(o.token_id, o.logprob, o.top_logprobs) for o in stream.outputs]
            assert received == recorded.get(stream.request_id, [])
            assert all(logprob is not None for _, logprob, _ in received)
            if stream.params.ignore_eos and not stream.aborted:
                assert len(received) == stream.params.max_tokens
            assert [o.finish_reason for o in stream.outputs[:-1]] == [None] * (len(received) - 1)

    def assert_undisturbed(self) -> None:
        """The oracle: every token and logprob is what workers that nobody struck draw from the same schedule."""
        self.assert_delivered()
        result = self.compare()
        assert result.differences == ()
        assert result.compared == sum(len(stream.outputs) for stream in self.streams) > 0
        assert self.engine.status().counters["replay_mismatches"] == 0

    def assert_rebuilt(self, *lost: int) -> None:
        """One recovery, from parity: the lost bytes were really gone, and nobody had to start again."""
        (record,) = self.recoveries
        assert record.lost_ranks == sorted(lost)
        assert record.bytes_lost == self.bytes_wiped > 0
        assert 0 < record.bytes_rebuilt <= record.bytes_lost
        assert record.recomputed_requests == 0

    def assert_recomputed(self, caplog: pytest.LogCaptureFixture, reason: str) -> None:
        """Requests began again from their tokens, and the log says why."""
        assert sum(record.recomputed_requests for record in self.recoveries) > 0
        lines = [m for m in caplog.messages if "is recomputed from its tokens" in m]
        assert any(reason in line for line in lines), lines


@contextmanager
def running(folder: Path, *, skip_rebuild: bool = False, **settings: object) -> Iterator[Stage]:
    """An engine for several scenes, with its failpoints in `folder`. When it has stopped, nothing is left of it."""
    host_rendezvous()  # what a process's first one takes for good, such as libuv's signal pipe, is no leak
    config = EngineConfig(**DEFAULTS | settings)
    start_nursery(config)
    owned = possessions()
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = str(folder)
    try:
        stage = Stage(config, folder, skip_rebuild=skip_rebuild)
        try:
            stage.engine.start()
            yield stage
        finally:
            stage.close()
    finally:
        if before is None:
            del os.environ[ENVIRONMENT]
        else:
            os.environ[ENVIRONMENT] = before
    gc.collect()
    left = possessions() - owned
    assert not left, f"left behind: {sorted(left.elements())}"


def start_nursery(config: EngineConfig) -> None:
    """It comes with a process's first engine and stays: one child that is no leak."""
    placement = place(config, inspect_checkpoint(config))
    assert nursery(placement.device, placement.environment).pid


def _is_nursery(child: psutil.Process) -> bool:
    """It may be a new one, but it is one. Its forks are called the same; they are children of a child."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return child.ppid() == os.getpid() and "ghostserve.workers.nursery_process" in child.cmdline()
    return False


def possessions() -> Counter[str]:
    """What this process holds that could leak: children, descriptors, threads, shared-memory files."""
    found = Counter(
        "child nursery" if _is_nursery(child) else f"child {child.pid}"
        for child in psutil.Process().children(recursive=True)
    )
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor
            found[f"descriptor {re.sub('[0-9]+', 'N', os.readlink(file))}"] += 1
    found["threads of Python"] = threading.active_count()
    found.update(f"shared memory {file}" for file in Path("/dev/shm").iterdir() if "ghostserve" in file.name)
    return found
