"""The kernels' benchmark at toy size: it runs, its figures hang together, and wrong bytes stop it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ghostserve.bench.gpu.ahead import Compilation, compile_ahead, compile_one
from ghostserve.bench.gpu.cases import Stage
from ghostserve.bench.gpu.decode_flush import DecodeFlushScale, bench_decode_flush
from ghostserve.bench.gpu.kernels import KernelScale, bench_kernels
from ghostserve.bench.gpu.shapes import CacheShape
from ghostserve.bench.gpu.timing import Spread
from ghostserve.bench.gpu.verify import WrongBytesError, check_plan, check_sums
from ghostserve.codes import XorCode
from ghostserve.codes.cpu import CpuBackend

TOY = CacheShape("toy", layers=1, row_bytes=64, ranks=8, block_size=4)


def quietly(text):
    assert text


def test_every_case_is_measured(device):
    scale = KernelScale(
        shapes=(TOY,), codes=("rs:2",), limited=("rs:2",), programs=(2,), tokens=8, sets=2, spread=1, copy_bytes=4096,
        rounds=1, samples=4,
    )  # fmt: skip
    figures = bench_kernels(scale, device, quietly)
    cases = [(f.case, f.checksums, f.programs) for f in figures]
    assert cases == [
        ("encode", True, None),
        ("encode", True, 2),
        ("encode", False, None),
        ("rebuild of one", True, None),
        ("rebuild of one", False, None),
        ("rebuild of two", True, None),
        ("rebuild of two", False, None),
    ]
    assert [f.traffic_bytes for f in figures[2:4]] == [10 * 8 * 128, 9 * 8 * 128]
    assert all(f.seconds.median > 0 and f.of_ceiling == f.gbps / f.ceiling_gbps for f in figures)


def test_kernels_are_compiled_ahead(device):
    assert compile_ahead([], torch.device("cpu")) == "kernels are compiled one by one"
    job = Compilation(TOY, "rs:2", "rebuild of two", checksums=True, slots=8)
    compile_one(job, str(device))
    with pytest.raises(KeyError, match="rebuild of three"):
        compile_one(replace(job, case="rebuild of three"), str(device))


def test_the_decode_flush_is_measured(device):
    scale = DecodeFlushScale(shapes=(TOY,), codes=("xor",), sequences=3, sets=2, rounds=2, copy_bytes=4096)
    (figure,) = bench_decode_flush(scale, device, quietly)
    assert figure.launched.samples == 2
    assert (figure.replayed is None) == (figure.graph_error is not None)


def test_wrong_bytes_are_seen(device):
    stage = Stage(TOY, tokens=8, sets=1, spread=1, device=device)
    code, backend = XorCode(8, 1), CpuBackend()
    encode = stage.work("encode", code, code.encode_plan, checksums=True)
    stage.check(encode, backend, samples=8)
    rebuild = stage.work("rebuild", code, code.rebuild_plan([1]), checksums=True)
    stage.check(rebuild, backend, samples=8)
    # Parity of other bytes: the rebuilt shard is the plan's output, but not what was lost.
    stage.parity[0][5, 17] ^= 1
    with pytest.raises(WrongBytesError, match="shard 1 of set 0 is not what it was"):
        stage.check(rebuild, backend, samples=8)


class Idle(Stage):
    """Its kernels never run."""

    def launch(self, work, sums, *, programs=None):
        pass


def test_a_launch_that_writes_nothing_is_seen(device):
    stage = Idle(TOY, tokens=8, sets=1, spread=1, device=device)
    code, backend = XorCode(8, 1), CpuBackend()
    encode = stage.work("encode", code, code.encode_plan, checksums=True)
    # What stands there from before must not pass: the outputs are poisoned first.
    Stage.launch(stage, encode, stage.sums(encode, 1))
    with pytest.raises(WrongBytesError, match="shard 8 differs from the reference in 8 of 8 slots"):
        stage.check(encode, backend, samples=8)


def test_checksums_are_compared():
    backend = CpuBackend()
    data = np.random.default_rng(0).integers(0, 256, (3, 64), dtype=np.uint8)
    sums = np.stack([backend.checksums(data)] * 2, axis=1)
    check_sums("case", [data, data], sums, backend)
    sums[2, 1] += 1
    with pytest.raises(WrongBytesError, match="case: checksum of shard 1, slot 2"):
        check_sums("case", [data, data], sums, backend)
    plan = XorCode(2, 1).encode_plan
    with pytest.raises(WrongBytesError, match="first at slot 0, byte 0"):
        check_plan("case", plan, [data, data], [~(data ^ data)], backend, np.empty((3, 0), np.uint64))


def test_slots_are_read_where_they_are(device):
    """The benchmark's own view of a cache against the one that the data path has."""
    from ghostserve.parity.paging import gather
    from ghostserve.parity.ranges import SlotRange

    stage = Stage(TOY, tokens=8, sets=1, spread=2, device=device)
    index = torch.tensor([[3, 1], [0, 2]], device=device)
    ranges = [SlotRange(3, 1, 0, 1, 2), SlotRange(0, 1, 0, 2, 3)]
    found = stage.caches.slots(stage.caches.tensors[2], index).cpu().numpy()
    assert np.array_equal(found, gather(stage.caches.tensors[2].cpu().numpy(), stage.layout, ranges))


def test_spread():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert Spread.of([3.0]).times(2) == Spread(6.0, 6.0, 6.0, 1)
