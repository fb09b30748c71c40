"""What scrubbing costs: tokens a second of an engine that scrubs against one that does not, side by side in one run."""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ghostserve.bench.workload import bench_config, run_streams
from ghostserve.checkpoint import Scrubber, encode_ranges
from ghostserve.codes import make_backend, make_code
from ghostserve.engine.engine import Engine
from ghostserve.errors import GhostServeError
from ghostserve.parity import CacheLayout, HostArena, ParityStore, ShardMap, SlotRange, StoreGeometry

__all__ = ["ScrubFigure", "bench_scrub", "verify_speed"]

_STREAMS, _PROMPT, _TOKENS = 6, 256, 48
_BLOCKS = 32


@dataclass(frozen=True)
class ScrubFigure:
    """Tokens a second of each round, with and without; `read`: bytes verified a second, `passes` over all KV."""

    rate: int
    scrubbing: tuple[float, ...]
    plain: tuple[float, ...]
    read: float
    passes: int
    verified: float
    """Bytes that a thread verifies in a second of its own time, on caches of this shape."""

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(a / b for a, b in zip(self.scrubbing, self.plain, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def bench_scrub(
    model: str,
    tensor_parallel_size: int,
    parity: str,
    *,
    rate: int,
    rounds: int,
    progress: Callable[[str], None],
) -> ScrubFigure:
    """Both engines live at once and take turns, so that a drifting machine hits both alike.

    Every round checks that both give the same tokens; at the end the scrubber must have found nothing. Raises
    `GhostServeError` where that is not so.
    """
    speeds: dict[int, list[float]] = {rate: [], 0: []}
    seconds_scrubbed = 0.0
    with ExitStack() as stack:
        engines = {}
        for each in speeds:
            progress(f"starting {tensor_parallel_size} ranks, scrubbing {each >> 20} MiB/s")
            config = bench_config(model, tensor_parallel_size, parity, standbys=0)
            config = msgspec.structs.replace(config, scrub_rate=each)
            engines[each] = stack.enter_context(Engine(config))
        before = engines[rate].status().counters
        for number in range(-1, rounds):  # round -1 warms up
            progress(f"round {number + 1} of {rounds}" if number >= 0 else "warm-up")
            tokens = {}
            for each in tuple(speeds) if number % 2 else reversed(tuple(speeds)):
                began = time.monotonic()
                streams = run_streams(
                    engines[each], count=_STREAMS, prompt_tokens=_PROMPT, max_tokens=_TOKENS, name=f"round{number}"
                )
                seconds = time.monotonic() - began
                tokens[each] = [stream.tokens for stream in streams]
                if number >= 0:
                    speeds[each].append(_STREAMS * _TOKENS / seconds)
                    seconds_scrubbed += seconds if each else 0.0
                elif each:
                    before = engines[rate].status().counters
            if tokens[rate] != tokens[0]:
                raise GhostServeError(f"round {number}: tokens with scrubbing differ from those without")
        after = engines[rate].status().counters
    if after["scrub_corrupt_slots"]:
        raise GhostServeError(f"the scrubber found {after['scrub_corrupt_slots']:.0f} slots where nothing was wrong")
    read = (after["scrubbed_bytes"] - before["scrubbed_bytes"]) / seconds_scrubbed
    passes = int(after["scrub_passes"] - before["scrub_passes"])
    verified = verify_speed(engines[rate].spec.cache_layout, parity, tensor_parallel_size)
    return ScrubFigure(rate, tuple(speeds[rate]), tuple(speeds[0]), read, passes, verified)


def verify_speed(shape: CacheLayout, parity: str, num_ranks: int, seconds: float = 2.0) -> float:
    """Bytes verified a second of the thread's own time, in caches of `_BLOCKS` blocks of this shape, one a rank."""
    segment = shape.segments[0]
    layout = CacheLayout.layered(len(shape.segments) // 2, _BLOCKS, shape.block_size, segment.nbytes)
    code = make_code(parity, num_ranks)
    assert code is not None, "the engine would have refused to scrub without a code"
    store = ParityStore.create(StoreGeometry(code.n, code.k, _BLOCKS, layout.block_size, layout.slot_bytes))
    try:
        rng = np.random.default_rng(1)
        arenas = [HostArena(rng.integers(0, 256, layout.total_bytes, dtype=np.uint8)) for _ in range(num_ranks)]
        parts: dict[str, Any] = {"store": store, "backend": make_backend(), "arenas": arenas, "layout": layout}
        parts["shard_map"] = ShardMap(num_ranks, num_ranks)
        slots = [SlotRange(block, 1, block, 0, layout.block_size) for block in range(_BLOCKS)]
        encode_ranges(**parts, code=code, epoch=store.epoch, ranges=slots)
        scrubber = Scrubber(**parts, held=lambda slot: True)
        scrubber.check(slots)
        read, began = 0, time.thread_time()
        while time.thread_time() - began < seconds:
            read += scrubber.check(slots).bytes_read
        return read / (time.thread_time() - began)
    finally:
        store.close()
