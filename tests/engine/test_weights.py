"""Weights in host memory: what a newcomer copies is what the first one read, for each rank."""

import pytest
import torch

from ghostserve.engine import weights
from ghostserve.engine.communicator import make_communicator
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.dryrun import rank_weight_bytes
from ghostserve.engine.model import ShardedModel
from ghostserve.engine.modelspec import inspect_checkpoint
from ghostserve.engine.weights import HostWeights, create_regions
from ghostserve.errors import MemoryBudgetError

CPU = torch.device("cpu")


def parameters(model: ShardedModel) -> dict[str, torch.Tensor]:
    return {key: parameter.clone() for key, _, parameter in model._parameters()}


@pytest.mark.parametrize("family", ["llama tied", "qwen2"])
def test_a_newcomer_copies_what_the_first_one_read(checkpoint, family: str) -> None:  # type: ignore[no-untyped-def]
    spec = inspect_checkpoint(EngineConfig(model=checkpoint(family), tensor_parallel_size=2, kv_cache_memory=1 << 22))
    communicator = make_communicator("cpu", 2)
    nbytes = rank_weight_bytes(spec)
    regions = create_regions(2, nbytes, reserved=0)
    kept = HostWeights([region.fd for region in regions], nbytes)
    for rank in (0, 1):
        plain = ShardedModel(spec, communicator)
        plain.load(rank)
        wanted = parameters(plain)
        assert not kept.filled(rank)
        first = ShardedModel(spec, communicator)
        assert first.load(rank, CPU, kept) == nbytes
        assert kept.filled(rank)
        newcomer = ShardedModel(spec, communicator)
        newcomer.place(CPU)
        newcomer.strip()  # as a standby that has rehearsed
        newcomer._read = None  # type: ignore[assignment,method-assign] - it must not read files
        newcomer.load(rank, CPU, kept)
        for found in (parameters(first), parameters(newcomer)):
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    for region in regions:
        region.close()


def test_without_the_mark_the_next_one_reads_again(llama_4: str) -> None:
    """The first one died while it was filling: half of it must not pass for the whole."""
    spec = inspect_checkpoint(EngineConfig(model=llama_4, kv_cache_memory=1 << 22))
    nbytes = rank_weight_bytes(spec)
    (region,) = create_regions(1, nbytes, reserved=0)
    kept = HostWeights([region.fd], nbytes)
    kept.tensor(0)[: nbytes // 2] = 0xAB
    model = ShardedModel(spec, make_communicator("cpu", 1))
    model.load(0, CPU, kept)
    plain = ShardedModel(spec, make_communicator("cpu", 1))
    plain.load(0)
    wanted, found = parameters(plain), parameters(model)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    region.close()


def test_too_little_host_memory_is_said_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "available_memory", lambda: 3 << 30)
    with pytest.raises(MemoryBudgetError, match=r"2 ranks needs 2.0 GiB .* 2.5 GiB are available|2 ranks") as caught:
        create_regions(2, 1 << 30, reserved=512 << 20)
    assert caught.value.needed > 2 << 30
