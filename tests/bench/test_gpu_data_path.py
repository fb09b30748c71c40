"""The benchmarks of checkpoint, rebuild and overhead at toy size: they run, and wrong bytes stop them."""

import pytest

from ghostserve.bench.gpu.checkpoint import CheckpointScale, bench_checkpoint
from ghostserve.bench.gpu.llama import RankShape
from ghostserve.bench.gpu.matmuls import Matmuls, Step
from ghostserve.bench.gpu.overhead import Decode, OverheadScale, Prefill, bench_gpu_overhead
from ghostserve.bench.gpu.rebuild import RebuildScale, bench_rebuild
from ghostserve.bench.gpu.shapes import CacheShape
from ghostserve.bench.gpu.verify import WrongBytesError
from ghostserve.bench.gpu.ways import Ways
from ghostserve.bench.gpu.world import World
from ghostserve.codes.cpu import CpuBackend
from ghostserve.parity.ranges import SlotRange

TOY = CacheShape("toy", layers=1, row_bytes=64, ranks=4, block_size=4)
LLAMA = CacheShape("toy Llama", layers=1, row_bytes=2 * 16 * 2, ranks=4, block_size=4)
RANK = RankShape(LLAMA, hidden=32, heads=4, kv_heads=2, head_dim=16, intermediate=48, vocabulary=64)


def quietly(text):
    assert text


def test_checkpoint(device, runtime):
    scale = CheckpointScale(
        shape=TOY,
        codes=("rs:2",),
        tokens=8,
        chunks=2,
        programs=(2,),
        rounds=1,
        samples=8,
        matmuls=Matmuls(size=32, count=1, rounds=1),
        step=Matmuls(size=32, count=1),
    )
    alone, beside = bench_checkpoint(scale, device, quietly, runtime)
    ways = ["flush, ring", "flush, ring, parity scattered", "flush, zero-copy", "flush, auto"]
    behind = "flush, auto, behind a step"
    ways.append(behind)
    replicas = [f"replicate-host: {way}" for way in ways]
    ways.append("kernel alone, zero-copy, 2 blocks")
    assert [f.way for f in alone] == [*ways, *replicas]
    assert [f.code for f in alone] == ["rs 4:2"] * 6 + ["copy 4:4"] * 5
    assert [f.way for f in beside] == ["copy all shards", *(way for way in ways if way != behind), replicas[-2]]
    assert all(f.limit == 2 and f.faster > 0 for f in alone[:6])
    assert all(f.limit == 1 and f.gbps > 0 for f in alone[6:])
    after_it, at_once = ([f for f in alone if (behind in f.way) is said] for said in (True, False))
    assert {f.replicate for f in after_it} == {f.seconds for f in after_it if "replicate" in f.way}
    assert {f.replicate for f in at_once} <= {f.seconds for f in at_once if "replicate" in f.way}
    assert len({f.copy_all for f in after_it}) == len({f.copy_all for f in at_once}) == 1
    assert max(f.faster_than_replicate for f in alone[6:]) == 1, "the fastest of them is what parity is held against"
    assert all(f.in_store.median <= f.seconds.median for f in alone if "kernel" not in f.way)
    assert all(f.checkpoints >= 1 for f in beside)


def test_a_checkpoint_of_wrong_bytes_is_seen(runtime):
    with World(runtime, TOY, 4, "xor", num_parity_blocks=4) as world:
        ways, step = Ways(world, tokens=8, chunks=2), Step(runtime, Matmuls(size=32, count=1))
        try:
            way = next(iter(ways.flushes(step)))
            ways.check(way, CpuBackend(), samples=8)
            # The cache changes after the flush: what the store has is no longer its parity.
            world.arenas[1].tensor[: TOY.row_bytes * 16] ^= 1
            with pytest.raises(WrongBytesError, match="xor 4:1: parity shard 0 is wrong"):
                world.check(ways.ranges[0], CpuBackend(), samples=8)
            with World(runtime, TOY, 4, "copy", num_parity_blocks=4, arenas=world.arenas) as copied:
                copies = Ways(copied, tokens=8, chunks=2)
                copies.check(next(iter(copies.flushes(step))), CpuBackend(), samples=8)
                world.arenas[2].tensor[: TOY.row_bytes * 16] ^= 1
                with pytest.raises(WrongBytesError, match="copy 4:4: parity shard 2 is wrong"):
                    copied.check(copies.ranges[0], CpuBackend(), samples=8)
                copies.close()
            nowhere = [SlotRange(0, 2, 0, 0, 4)]  # of another generation
            with pytest.raises(WrongBytesError, match="4 of 4 slots are not committed"):
                world.check(nowhere, CpuBackend(), samples=8)
        finally:
            ways.close()


def test_rebuild(device, runtime):
    cases = (("xor", (3,)), ("rs:2", (0, 2)))
    scale = RebuildScale(shape=TOY, tokens=16, cases=cases, rounds=1, samples=8)
    figures = bench_rebuild(scale, device, quietly, runtime)
    assert [(f.code, f.lost, f.order) for f in figures] == [
        ("xor 4:1", (3,), "in order"),
        ("xor 4:1", (3,), "scattered"),
        ("rs 4:2", (0, 2), "in order"),
        ("rs 4:2", (0, 2), "scattered"),
    ]
    assert [f.rebuilt_bytes for f in figures] == [16 * 128, 16 * 128, 2 * 16 * 128, 2 * 16 * 128]
    assert all(f.parity_bytes == f.rebuilt_bytes and f.of_ceiling > 0 for f in figures)


def test_overhead(device, runtime):
    scale = OverheadScale(
        prefills=(Prefill(RANK, tokens=16, chunk=8),),
        decodes=(Decode(RANK, sequences=2, context=8, steps=6, graphs=(False,)),),
        rounds=1,
        decode_rounds=2,
        samples=8,
    )
    figures = bench_gpu_overhead(scale, device, quietly, runtime)
    assert [(f.work.partition(" ")[0], f.parity, f.flushes) for f in figures] == [
        ("prefill", "rs:2, every chunk by this rank", 2),
        ("prefill", "rs:2, one chunk of 4", 1),
        ("decode", "rs:2, every chunk by this rank", 6),
        ("decode", "rs:2, one chunk of 4", 2),
        ("decode", "none, again", 0),
    ]
    assert all(f.ratio.low <= f.ratio.median <= f.ratio.high for f in figures)
    assert [f.ratio.samples for f in figures] == [1, 1, 2, 2, 2]
