"""Helpers of the code tests: stripes with known bytes, and a rebuild whose lost bytes are really gone."""

from collections.abc import Collection, Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes import Backend, Code, Plan
from ghostserve.codes.reference import naive_parity

Bytes = NDArray[np.uint8]
POISON = 0xA5


def random_shards(count: int, slots: int, slot_bytes: int, seed: int = 0) -> list[Bytes]:
    rng = np.random.default_rng((seed, count, slots, slot_bytes))
    return [rng.integers(0, 256, (slots, slot_bytes), dtype=np.uint8) for _ in range(count)]


def stripe(code: Code, slots: int, slot_bytes: int, seed: int = 0) -> list[Bytes]:
    """N random data shards and their K parity shards from the definition of the code."""
    data = random_shards(code.n, slots, slot_bytes, seed)
    return data + naive_parity(code, data)


def run(backend: Backend, plan: Plan, inputs: list[Bytes]) -> list[Bytes]:
    """Run into poisoned outputs."""
    shape = inputs[0].shape if inputs else (1, plan.rows)
    outputs = [np.full(shape, POISON, np.uint8) for _ in plan.outputs]
    backend.run(plan, inputs, outputs)
    return outputs


def rebuild(
    backend: Backend,
    code: Code,
    shards: list[Bytes],
    lost: Collection[int],
    wanted: Collection[int] | None = None,
) -> dict[int, Bytes]:
    """Wipe `lost`, rebuild `wanted`; returns all outputs of the plan, scratch too, by shard id."""
    left = [np.full_like(shard, POISON) if i in lost else shard.copy() for i, shard in enumerate(shards)]
    plan = code.rebuild_plan(lost, wanted)
    assert not set(plan.inputs) & set(lost)
    return dict(zip(plan.outputs, run(backend, plan, [left[i] for i in plan.inputs]), strict=True))


def assert_rebuilds(backend: Backend, code: Code, shards: list[Bytes], lost: tuple[int, ...]) -> None:
    """Every non-empty subset of `lost` can be asked for; asked ones come first, and scratch is right too."""
    for size in range(1, len(lost) + 1):
        for wanted in combinations(lost, size):
            rebuilt = rebuild(backend, code, shards, lost, wanted)
            assert tuple(rebuilt)[: len(wanted)] == wanted
            for shard, data in rebuilt.items():
                assert np.array_equal(data, shards[shard]), f"{code} lost {lost} wanted {wanted}: shard {shard}"


def erasures(code: Code) -> Iterator[tuple[int, ...]]:
    """Every set of 1..K lost shards, data and parity."""
    for size in range(1, code.k + 1):
        yield from combinations(range(code.n + code.k), size)
