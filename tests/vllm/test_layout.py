from dataclasses import dataclass

import numpy as np
import pytest
import torch

from ghostserve.errors import UnsupportedModelError
from ghostserve.parity import CacheLayout, Segment, SlotRange, gather, scatter
from ghostserve.vllm.layout import CpuAttentionOp, probed_layout, strided_layout


def test_flash_attention_rows_of_all_heads_are_one_segment():
    cache = torch.empty_strided((10, 4, 16, 128), (8192, 128, 512, 1), dtype=torch.bfloat16, device="meta")
    layout = strided_layout({"a": cache, "b": cache}, {"a": 0, "b": 1 << 20})
    assert layout == CacheLayout(10, 16, (Segment(0, 16384, 1024, 1024), Segment(1 << 20, 16384, 1024, 1024)))


def test_head_major_rows_are_one_segment_a_head_and_blocks_can_stand_layers_apart():
    cache = torch.empty_strided((10, 2, 16, 128), (3 * 4096, 2048, 128, 1), dtype=torch.float32, device="meta")
    layout = strided_layout({"a": cache}, {"a": 64})
    assert layout.segments == (Segment(64, 49152, 512, 512), Segment(64 + 8192, 49152, 512, 512))


def test_strided_slots_are_exactly_the_tensors_rows():
    memory = torch.arange(6 * 3 * 8 * 10, dtype=torch.int16)
    cache = memory.view(6, 8, 3, 10).transpose(1, 2)
    layout = strided_layout({"a": cache[..., ::2]}, {"a": 0})
    shards = gather(memory.view(torch.uint8).numpy(), layout, [SlotRange(4, 0, 0, 2, 7)])
    expected = cache[4, :, 2:7, ::2].transpose(0, 1).reshape(5, -1)
    assert np.array_equal(shards.view(np.int16), expected.numpy())


def test_layers_with_one_cache_count_once():
    cache = torch.zeros(3, 2, 4, 8)
    layout = strided_layout({"a": cache, "b": cache}, {"a": 0, "b": 0})
    assert layout.slot_bytes == 2 * 8 * 4


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (torch.zeros(3, 4, 8), r"b has shape \(3, 4, 8\)"),
        (torch.zeros(4, 2, 4, 8), "b has 4 blocks of 4 slots, other than a: 3 of 4"),
        (torch.zeros(3, 2, 8, 8), "b has 3 blocks of 8 slots, other than a: 3 of 4"),
        (torch.zeros(3, 1, 4, 8), "a and b lay the same cache memory out differently"),
    ],
)
def test_caches_that_do_not_go_together_are_named(other, words):
    with pytest.raises(UnsupportedModelError, match=words):
        strided_layout({"a": torch.zeros(3, 2, 4, 8), "b": other}, {"a": 0, "b": 0})
    with pytest.raises(UnsupportedModelError, match="no KV cache"):
        strided_layout({}, {})


@dataclass(frozen=True)
class Packed:
    """An operation on int16 that keeps element e of a slot at `place(e, slot)` of the block's flat memory."""

    kind: str
    dtype: torch.dtype = torch.int16

    def __call__(self, key, value, cache, slots):
        block_size = cache.shape[2]
        for token, where in enumerate(slots.tolist()):
            block, slot = divmod(where, block_size)
            flat = cache[block].view(-1)
            row = torch.cat([key[token], value[token]], dim=-1).flatten()
            count = len(row)
            if self.kind == "transposed":
                flat[torch.arange(count) * block_size + slot] = row
            elif self.kind == "paired":  # as AMX does: two tokens' elements side by side, pairs of tokens apart
                flat[slot // 2 * 2 * count + torch.arange(count) * 2 + slot % 2] = row
            elif self.kind == "second block reversed":
                flat[(slot if block == 0 else block_size - 1 - slot) * count + torch.arange(count)] = row
            elif self.kind == "half of slot 3":
                flat[slot * count :][: count // 2 if slot == 3 else count] = row[: count // 2 if slot == 3 else count]
            elif self.kind == "one row for all":
                flat[:count] = row
            elif self.kind == "clears the next slot":
                flat[slot * count :][: 2 * count] = 0
                flat[slot * count :][:count] = row
            elif self.kind == "nothing":
                pass


def test_a_transposed_packing_is_found_with_its_steps():
    cache = torch.zeros(9, 1, 4, 6, dtype=torch.int16)
    layout = probed_layout({"a": cache, "b": cache}, {"a": 0, "b": 4096}, dict.fromkeys("ab", Packed("transposed")))
    assert layout.segments == tuple(Segment(at + e * 8, 48, 2, 2) for at in (0, 4096) for e in range(6))
    assert not cache.any()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("paired", "steps from slot to slot"),
        ("second block reversed", "steps from slot to slot, or from block to block"),
        ("half of slot 3", "not as many in every slot"),
        ("one row for all", "two slots share bytes"),
        ("clears the next slot", "not as many|share bytes"),
        ("nothing", "not as many in every slot"),
    ],
)
def test_packings_without_fixed_steps_are_refused(kind, words):
    cache = torch.zeros(9, 1, 4, 6, dtype=torch.int16)
    with pytest.raises(UnsupportedModelError, match=f"cache of layer7, .*{kind}.*({words}).*--dtype float32"):
        probed_layout({"layer7": cache}, {"layer7": 0}, {"layer7": Packed(kind)})


def vllm_op(isa, dtype, kv_cache_dtype="auto"):
    pytest.importorskip("vllm")
    return CpuAttentionOp(isa, dtype, kv_cache_dtype)


def fill(op, cache, slots, seed):
    """Random tokens written to `slots` by the operation itself."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(slots), cache.shape[1], cache.shape[3] // 2)
    key, value = (torch.randn(shape, generator=generator).to(op.dtype) for _ in "kv")
    op(key, value, cache, torch.tensor(slots))


ISA_OF = {32: "vec", 64: "vec", 80: "vec16", 128: "vec"}
CASES = [
    (dtype, block_size, head_size, ISA_OF[head_size])
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for block_size in (32, 64, 128)
    for head_size in (32, 64, 80, 128)
]


def two_layers(dtype, block_size, head_size, fill_byte):
    """Memory of two layers of four blocks and two heads each, the second one further on: (bytes, tensors, offsets)."""
    shape = (4, 2, block_size, 2 * head_size)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    memory = torch.full((2 * nbytes + 4096,), fill_byte, dtype=torch.uint8)
    offsets = {"a": 0, "b": nbytes + 4096}
    tensors = {name: memory[at : at + nbytes].view(dtype).view(shape) for name, at in offsets.items()}
    return memory.numpy(), tensors, offsets


def moved(layout, source, ranges, size):
    """`source`'s slots scattered over poison."""
    target = np.full(size, 0xEE, np.uint8)
    scatter(target, layout, ranges, gather(source, layout, ranges))
    return target


@pytest.mark.parametrize(("dtype", "block_size", "head_size", "isa"), CASES)
def test_slots_carried_over_are_what_the_operation_writes(dtype, block_size, head_size, isa):
    op = vllm_op(isa, dtype)
    source, tensors, offsets = two_layers(dtype, block_size, head_size, 0xEE)
    layout = probed_layout(tensors, offsets, dict.fromkeys(tensors, op))
    assert layout.slot_bytes == 2 * 2 * 2 * head_size * dtype.itemsize
    part = block_size // 2 + 3
    ranges = [SlotRange(2, 0, 0, 0, block_size), SlotRange(1, 0, 0, 5, part), SlotRange(3, 0, 0, part, part + 1)]
    chosen = [r.block * block_size + s for r in ranges for s in range(r.start, r.stop)]
    for seed, cache in enumerate(tensors.values()):
        fill(op, cache, chosen, seed)
    # Poison everywhere but in the slots that the operation has written: equal means exactly these bytes are carried.
    assert np.array_equal(moved(layout, source, ranges, source.size), source)
    # And with all other slots in use, the same slots still come out the same, and nothing else does.
    everything = source.copy()
    _, others, _ = two_layers(dtype, block_size, head_size, 0xEE)
    view = {
        n: torch.from_numpy(everything)[offsets[n] :][: c.nbytes].view(dtype).view(c.shape) for n, c in others.items()
    }
    rest = sorted(set(range(4 * block_size)) - set(chosen))
    for seed, cache in enumerate(view.values()):
        fill(op, cache, rest, 10 + seed)
    assert np.array_equal(moved(layout, everything, ranges, source.size), source)


@pytest.mark.parametrize("field", ["slot_stride", "block_stride", "offset"])
def test_twin_a_layout_with_one_wrong_step_does_not_carry_the_slots(field):
    op = vllm_op("vec", torch.bfloat16)
    source, tensors, offsets = two_layers(torch.bfloat16, 32, 64, 0xEE)
    layout = probed_layout(tensors, offsets, dict.fromkeys(tensors, op))
    ranges = [SlotRange(2, 0, 0, 0, 32)]
    for cache in tensors.values():
        fill(op, cache, range(64, 96), 0)
    assert np.array_equal(moved(layout, source, ranges, source.size), source)
    s = layout.segments[5]
    fields = {"offset": s.offset, "block_stride": s.block_stride, "slot_stride": s.slot_stride}
    fields[field] += 2
    wrong = CacheLayout(4, 32, (*layout.segments[:5], Segment(**fields, nbytes=s.nbytes), *layout.segments[6:]))
    assert not np.array_equal(moved(wrong, source, ranges, source.size), source)


def skip_where_vllm_refuses(op, cache):
    """Which packings vLLM has depends on the processor; those that it has everywhere are tested above."""
    try:
        fill(op, cache.clone(), [0], 0)
    except RuntimeError as error:
        pytest.skip(f"vLLM packs no such cache on this processor: {error}")


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_amx_is_refused_with_what_to_do(dtype):
    op = vllm_op("amx", dtype)
    cache = torch.zeros(4, 2, 32, 128, dtype=dtype)
    skip_where_vllm_refuses(op, cache)
    with pytest.raises(UnsupportedModelError, match=r"cache of layer0, .*isa='amx'.*--dtype float32.* without AMX"):
        probed_layout({"layer0": cache}, {"layer0": 0}, {"layer0": op})


def test_an_fp8_cache_is_one_byte_an_element():
    op = vllm_op("vec", torch.bfloat16, "fp8_e4m3")
    cache = torch.full((4, 2, 32, 128), 0xEE, dtype=torch.uint8)
    skip_where_vllm_refuses(op, cache)
    layout = probed_layout({"a": cache}, {"a": 0}, {"a": op})
    assert layout.slot_bytes == 2 * 128
    fill(op, cache, [70, 71], 0)
    source = cache.view(-1).numpy()
    assert np.array_equal(moved(layout, source, [SlotRange(2, 0, 0, 6, 8)], source.size), source)


def test_layers_of_one_kind_are_probed_once_and_other_kinds_apart():
    calls = []

    @dataclass(frozen=True)
    class Counted(Packed):
        def __call__(self, key, value, cache, slots):
            calls.append((self.kind, cache.shape))
            super().__call__(key, value, cache, slots)

    cache, other = torch.zeros(9, 1, 4, 6, dtype=torch.int16), torch.zeros(9, 2, 4, 6, dtype=torch.int16)
    tensors = {f"layer{i}": cache for i in range(32)} | {"wide": other}
    ops = {name: Counted("transposed") for name in tensors}
    layout = probed_layout(tensors, {name: i * 4096 for i, name in enumerate(tensors)}, ops)
    assert len(layout.segments) == 32 * 6 + 12
    assert calls == [("transposed", (2, 1, 4, 6))] * 8 + [("transposed", (2, 2, 4, 6))] * 8
