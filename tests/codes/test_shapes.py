"""Sizes, strides, alignment, sub-ranges and bit patterns: bytes are bytes."""

import numpy as np
import pytest
from code_cases import POISON, random_shards, rebuild, run, stripe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ghostserve.codes import make_code, run_reference
from ghostserve.codes.cpu_kernels import WIDTH
from ghostserve.errors import UnsupportedCodeError

ODD_SIZES = [1, 2, 3, 7, 63, 64, 65, WIDTH - 1, WIDTH, WIDTH + 1, 2 * WIDTH - 1, 1000, 2 * WIDTH + 17]


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("spec", ["xor", "rdp", "rs:1", "rs:2", "rs:3"])
def test_odd_sizes(backend, spec, size):
    code = make_code(spec, 5)
    data = random_shards(5, 3, size * code.rows)
    shards = data + run_reference(code.encode_plan, data)
    assert all(map(np.array_equal, run(backend, code.encode_plan, data), shards[5:]))
    lost = (1, 5)[: code.k]
    for shard, rebuilt in rebuild(backend, code, shards, lost).items():
        assert np.array_equal(rebuilt, shards[shard])


@pytest.mark.parametrize("slot_bytes", [48, 16 * WIDTH + 16])
@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.parametrize("spec", ["rdp", "rs:2"])
def test_unaligned_strided_views_and_nothing_else_written(backend, spec, offset, slot_bytes):
    code = make_code(spec, 5)
    data = random_shards(5, 4, slot_bytes)
    expected = run_reference(code.encode_plan, data)
    inputs = []
    for shard in data:
        wide = np.full((8, slot_bytes + 11), POISON, np.uint8)
        inputs.append(wide[::-2, offset : offset + slot_bytes])  # unaligned, with a negative stride
        inputs[-1][:] = shard
    parity = np.full((4, 4, slot_bytes + 7), POISON, np.uint8)
    outputs = [parity[:, k, offset : offset + slot_bytes] for k in (1, 2)]
    backend.run(code.encode_plan, inputs, outputs)
    assert all(map(np.array_equal, outputs, expected))
    for output in outputs:
        output[:] = POISON
    assert np.all(parity == POISON)


@pytest.mark.parametrize("spec", ["xor", "rs:2"])
def test_a_sub_range_of_bytes_encodes_alone(backend, spec):
    code = make_code(spec, 4)
    data = random_shards(4, 3, 900)
    whole = run(backend, code.encode_plan, data)
    for first, last in [(0, 1), (17, 18), (250, 777), (899, 900)]:
        part = run(backend, code.encode_plan, [shard[:, first:last] for shard in data])
        assert all(np.array_equal(a, b[:, first:last]) for a, b in zip(part, whole, strict=True))


@pytest.mark.parametrize("spec", ["xor", "rdp", "rs:3"])
def test_a_sub_range_of_slots_encodes_and_rebuilds_alone(backend, spec):
    code = make_code(spec, 6)
    shards = stripe(code, 7, 32)
    part = [shard[2:5] for shard in shards]
    assert all(map(np.array_equal, run(backend, code.encode_plan, part[:6]), part[6:]))
    for shard, rebuilt in rebuild(backend, code, part, range(code.k)).items():
        assert np.array_equal(rebuilt, part[shard])


@pytest.mark.parametrize("spec", ["rdp", "rs:2"])
def test_many_short_slots_go_through_in_batches(backend, spec):
    code = make_code(spec, 3)
    data = random_shards(3, 3000, 8)
    assert all(map(np.array_equal, run(backend, code.encode_plan, data), run_reference(code.encode_plan, data)))


SPECIAL = {
    np.float16: [0x0000, 0x8000, 0x7C00, 0xFC00, 0x7E01, 0x7C01, 0xFDFF, 0x0001, 0x83FF],
    np.float32: [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00123, 0x7F800001, 0xFFFFFFFF, 1, 0x807FFFFF],
    np.float64: [0, 1 << 63, 0x7FF << 52, 0x7FF0000000000001, 0xFFFFFFFFFFFFFFFF, 1, (1 << 63) + 5],
    np.int8: [0x00, 0x80, 0x7F, 0xFF],  # also every fp8
}


@pytest.mark.parametrize("dtype", SPECIAL)
@pytest.mark.parametrize("spec", ["xor", "rdp", "rs:2"])
def test_special_values_keep_their_bits(backend, spec, dtype):
    patterns = np.array(SPECIAL[dtype], dtype=f"u{np.dtype(dtype).itemsize}")
    rng = np.random.default_rng(7)
    values = [rng.choice(patterns, (4, 64)).view(dtype) for _ in range(5)]
    code = make_code(spec, 5)
    data = [value.view(np.uint8) for value in values]
    shards = data + run_reference(code.encode_plan, data)
    rebuilt = rebuild(backend, code, shards, range(code.k))
    for shard in range(code.k):
        assert rebuilt[shard].tobytes() == values[shard].tobytes()


@given(
    spec=st.sampled_from(["xor", "rdp", "rs:2", "rs:3"]),
    n=st.integers(1, 6),
    slots=st.integers(1, 3),
    symbol=st.integers(1, 40),
    draw=st.data(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_any_loss(backend, spec, n, slots, symbol, draw):
    code = make_code(spec, n)
    size = symbol * code.rows
    raw = [draw.draw(st.binary(min_size=slots * size, max_size=slots * size)) for _ in range(n)]
    data = [np.frombuffer(shard, np.uint8).reshape(slots, size) for shard in raw]
    shards = data + run(backend, code.encode_plan, data)
    lost = draw.draw(st.sets(st.integers(0, n + code.k - 1), min_size=1, max_size=code.k))
    for shard, rebuilt in rebuild(backend, code, shards, lost).items():
        assert np.array_equal(rebuilt, shards[shard])


def test_no_slots_is_no_work(backend):
    backend.run(make_code("xor", 2).encode_plan, [np.zeros((0, 8), np.uint8)] * 2, [np.zeros((0, 8), np.uint8)])


def bad_arrays():
    good = np.zeros((2, 64), np.uint8)
    frozen = good.copy()
    frozen.flags.writeable = False
    return {
        "1 inputs and 2 outputs": ([good], [good, good]),
        r"\(2, 64\), \(3, 64\)": ([good, np.zeros((3, 64), np.uint8)], [good, good]),
        "int8": ([good, good.view(np.int8)], [good, good]),
        r"\(64,\)": ([good, good[0]], [good, good]),
        r"\(2, 0\)": ([good[:, :0]] * 2, [good[:, :0]] * 2),
        "stride 2": ([good, np.zeros((2, 128), np.uint8)[:, ::2]], [good, good]),
        "read-only": ([good, good], [good, frozen]),
        "slot of 62 bytes can't be cut into 4": ([good[:, :62]] * 2, [good[:, :62]] * 2),
    }


@pytest.mark.parametrize("message", bad_arrays())
def test_arrays_that_do_not_fit_are_refused_with_the_numbers(backend, message):
    inputs, outputs = bad_arrays()[message]
    with pytest.raises(UnsupportedCodeError, match=message):
        backend.run(make_code("rdp", 2).encode_plan, inputs, outputs)
