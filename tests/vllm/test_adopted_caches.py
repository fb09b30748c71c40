import numpy as np
import pytest
import torch

from ghostserve.errors import UnsupportedModelError
from ghostserve.vllm.arena import handle_of, open_peer
from ghostserve.vllm.caches import adopt


def one_storage(dtype=torch.bfloat16, layers=3):
    """Layers as vLLM makes them: views of one storage, here with a gap before each."""
    block = (5, 2, 4, 16)
    numel = 5 * 2 * 4 * 16
    storage = torch.arange(layers * (numel + 8), dtype=torch.float32).to(dtype)
    return {
        f"layer{i}": storage[i * (numel + 8) + 8 : (i + 1) * (numel + 8)].view(block).transpose(1, 2)
        for i in range(layers)
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.uint8])
def test_views_look_the_same_and_lie_where_the_offsets_say(dtype):
    old = one_storage(dtype)
    adopted = adopt("test", old)
    for name, tensor in old.items():
        new = adopted.tensors[name]
        assert (new.shape, new.stride(), new.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
        assert torch.equal(new.contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8))
        assert new.data_ptr() == adopted.region.array.ctypes.data + adopted.offsets[name]


def test_what_a_layer_writes_is_in_the_region_and_not_in_the_old_memory():
    old = one_storage()
    adopted = adopt("test", old)
    before = old["layer1"].clone()
    peer = open_peer(handle_of(adopted.region))
    adopted.tensors["layer1"][2] = -1.0
    offset, tensor = adopted.offsets["layer1"], adopted.tensors["layer1"]
    block = peer.array[offset + 2 * tensor.stride(0) * 2 :][: tensor.stride(0) * 2]
    assert np.array_equal(block.view(np.uint16), np.full(tensor.stride(0), 0xBF80))
    assert torch.equal(old["layer1"], before)
    assert torch.equal(adopted.tensors["layer0"], old["layer0"])


def test_layers_that_share_a_cache_still_share_it_and_storages_begin_on_pages():
    first, second = torch.randn(5, 3), torch.randn(5, 7)
    adopted = adopt("test", {"a": first, "b": second, "c": first})
    assert adopted.offsets == {"a": 0, "b": 4096, "c": 0}
    assert adopted.region.nbytes == 8192
    adopted.tensors["c"][4] = 9.0
    assert (adopted.tensors["a"][4] == 9.0).all()
    assert torch.equal(adopted.tensors["b"], second)


def test_content_beyond_the_first_piece_is_copied_and_zeros_take_no_memory():
    cache = torch.zeros(6, 1 << 20, dtype=torch.uint8)
    cache[4, 123] = 5
    cache[5, -1] = 6
    adopted = adopt("test", {"layer0": cache[:, : (1 << 20) - 1], "layer1": cache})
    assert torch.equal(adopted.tensors["layer1"], cache)
    held = {int(p) for p in adopted.region.array.nonzero()[0]}
    assert held == {(4 << 20) + 123, (6 << 20) - 1}


def test_the_region_stays_mapped_as_long_as_a_tensor_needs_it():
    adopted = adopt("test", one_storage())
    tensor = adopted.tensors["layer2"]
    expected = tensor.clone()
    adopted.region.close()
    del adopted
    assert torch.equal(tensor, expected)


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        ([torch.zeros(5, 2), torch.zeros(5, 3)], "model.layers.1.mixer is a list"),
        ((torch.zeros(5, 2),), "model.layers.1.mixer is a tuple"),
        (torch.zeros(4, 2), "model.layers.1.mixer has 4 blocks, the one of model.layers.0.attn has 5"),
        (torch.zeros(5, 2, device="meta"), "model.layers.1.mixer has shape .* on meta"),
        (torch.zeros(0, 2), "model.layers.1.mixer has shape"),
    ],
)
def test_caches_that_cannot_be_protected_are_named(cache, words):
    with pytest.raises(UnsupportedModelError, match=words):
        adopt("test", {"model.layers.0.attn": torch.zeros(5, 2), "model.layers.1.mixer": cache})


def test_a_model_without_a_cache_is_refused():
    with pytest.raises(UnsupportedModelError, match="no KV cache"):
        adopt("test", {})
