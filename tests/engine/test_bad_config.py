"""Settings and checkpoints that can't be served: one clear error each, before any process is started."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ghostserve.engine.config import EngineConfig
from ghostserve.engine.engine import Engine
from ghostserve.errors import (
    CheckpointError,
    ConfigError,
    GhostServeError,
    MemoryBudgetError,
    UnsupportedCodeError,
    UnsupportedModelError,
)
from ghostserve.workers.nursery import Nursery


@pytest.fixture(autouse=True)
def no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(Nursery, "start", refuse)


@pytest.fixture
def folder(llama_4: str, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    return Path(shutil.copytree(llama_4, tmp_path / "model"))


def refused(error: type[GhostServeError], words: str, **settings: object) -> None:
    """The engine can't be made, with this error, whose one-line message has these words."""
    with pytest.raises(error, match=words) as caught:
        Engine(EngineConfig(**{"device": "cpu", "kv_cache_memory": 1 << 22} | settings))
    assert type(caught.value) is error
    assert str(caught.value).strip()


def test_a_good_one_is_made(folder: Path) -> None:
    engine = Engine(EngineConfig(model=str(folder), device="cpu", tensor_parallel_size=4, kv_cache_memory=1 << 22))
    engine.stop()


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"tensor_parallel_size": 3}, ConfigError, "tensor_parallel_size 3 does not divide the 4 attention heads"),
        ({"tensor_parallel_size": 8}, ConfigError, "tensor_parallel_size 8 does not divide the 4 attention heads"),
        ({"tensor_parallel_size": 0}, ConfigError, "tensor_parallel_size must be at least 1, not 0"),
        ({"parity": "turbo"}, UnsupportedCodeError, "turbo"),
        ({"parity": "rs:0"}, UnsupportedCodeError, "rs:0|0"),
        ({"parity": "rs:-1"}, UnsupportedCodeError, "rs:-1"),
        ({"parity": "rs:x"}, UnsupportedCodeError, "rs:x"),
        ({"parity": "rs:300", "tensor_parallel_size": 2}, UnsupportedCodeError, "300"),
        ({"parity": "xor:2"}, UnsupportedCodeError, "xor"),
        ({"parity": ""}, UnsupportedCodeError, "''|allowed|known"),
        ({"encoder": "some"}, ConfigError, "encoder 'some' is unknown; allowed: round_robin, striped"),
        ({"dtype": "int4"}, ConfigError, "dtype 'int4' is unknown; allowed: auto, float32"),
        ({"flush_tokens": 0}, ConfigError, "flush_tokens must be at least 1, not 0"),
        ({"max_unprotected_tokens": 0}, ConfigError, "max_unprotected_tokens must be at least 1"),
        ({"block_size": 0}, ConfigError, "block_size must be at least 1"),
        ({"scrub_rate": -1}, ConfigError, "scrub_rate must be at least 0, not -1"),
        ({"scrub_rate": 1, "protect": "none"}, ConfigError, "scrub_rate 1 has nothing to verify: protect none"),
        ({"scrub_rate": 1, "parity": "none"}, ConfigError, "scrub_rate 1 has nothing to verify: protect none"),
        ({"standbys": -1}, ConfigError, "standbys must be at least 0, not -1"),
        ({"step_deadline": 0.0}, ConfigError, "step_deadline must be a positive number of seconds"),
        ({"phase_deadline": float("nan")}, ConfigError, "phase_deadline must be a positive number of seconds"),
        ({"max_num_seqs": 300}, ConfigError, "max_num_batched_tokens 256 is below max_num_seqs 300"),
        ({"max_model_len": 100_000}, ConfigError, "max_model_len 100000 exceeds the model's .* 512"),
        ({"max_model_len": 1}, ConfigError, "max_model_len must be at least 2, not 1"),
        ({"kv_cache_memory": 1000}, ConfigError, "kv_cache_memory 1000 holds 0 blocks"),
        ({"kv_cache_memory": 100_000, "max_model_len": 512}, ConfigError, "raise the one or lower the other"),
        ({"parity_memory": 10}, ConfigError, "parity_memory 10 can't hold the parity of one block"),
        ({"parity_memory": -1}, ConfigError, "parity_memory must not be negative"),
        (
            {"kv_cache_memory": 1 << 50, "max_num_seqs": 1 << 27, "max_num_batched_tokens": 1 << 27},
            MemoryBudgetError,
            "lower kv_cache_memory or parity_memory",
        ),
    ],
    ids=lambda value: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_settings(folder: Path, settings: dict[str, object], error: type[GhostServeError], words: str) -> None:
    refused(error, words, **{"model": str(folder)} | settings)


def test_too_little_memory_carries_the_numbers(folder: Path) -> None:
    config = EngineConfig(
        model=str(folder), kv_cache_memory=1 << 50, max_num_seqs=1 << 27, max_num_batched_tokens=1 << 27
    )
    with pytest.raises(MemoryBudgetError) as caught:
        Engine(config)
    assert caught.value.needed > caught.value.available > 0


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def truncate_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def store_weights_as_int8(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(file).items()}, file)


def index_of_missing_file(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def remove_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


DAMAGES: dict[str, tuple[Callable[[Path], object], type[GhostServeError], str]] = {
    "no config.json": (lambda f: (f / "config.json").unlink(), CheckpointError, "has no config.json"),
    "config.json cut off": (
        lambda f: (f / "config.json").write_text('{"model_type": "lla'),
        CheckpointError,
        "config.json can't be read",
    ),
    "config.json is a list": (
        lambda f: (f / "config.json").write_text("[1]"),
        CheckpointError,
        "names no model_type",
    ),
    "config.json is binary": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
        CheckpointError,
        "config.json can't be read",
    ),
    "unknown model_type": (
        lambda f: change_config(f, model_type="frobnicator"),
        CheckpointError,
        "'frobnicator' can't be used",
    ),
    "a value of the wrong type": (
        lambda f: change_config(f, num_hidden_layers="many"),
        CheckpointError,
        "num_hidden_layers|can't be used",
    ),
    "no layers": (lambda f: change_config(f, num_hidden_layers=0), CheckpointError, "num_hidden_layers"),
    "no heads": (lambda f: change_config(f, num_attention_heads=0), CheckpointError, "can't be used"),
    "an odd dtype": (lambda f: change_config(f, dtype="float64"), ConfigError, "dtype 'float64'"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        CheckpointError,
        "has no model.safetensors: weights are missing",
    ),
    "weights cut off": (truncate_weights, CheckpointError, "model.safetensors is damaged or half-written"),
    "weights are empty": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        CheckpointError,
        "model.safetensors is damaged or half-written",
    ),
    "an index with a missing file": (
        index_of_missing_file,
        CheckpointError,
        "has no model-00002-of-00002.safetensors",
    ),
    "an index that is no index": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        CheckpointError,
        "index.json is damaged",
    ),
    "an index that is a list": (
        lambda f: (f / "model.safetensors.index.json").write_text("[]"),
        CheckpointError,
        "index.json is damaged",
    ),
    "a tensor of another shape": (
        lambda f: change_config(f, intermediate_size=128),
        CheckpointError,
        "has shape .*96",
    ),
    "a tensor too few": (lambda f: change_config(f, num_hidden_layers=3), CheckpointError, "has no tensor '.*layers.2"),
    "no tokenizer": (remove_tokenizer, CheckpointError, "has no usable tokenizer"),
    "tokenizer.json cut off": (
        lambda f: (f / "tokenizer.json").write_text('{"version": "1'),
        CheckpointError,
        "has no usable tokenizer",
    ),
    "generation_config.json cut off": (
        lambda f: (f / "generation_config.json").write_text("{"),
        CheckpointError,
        "generation_config.json",
    ),
    "an unknown activation": (
        lambda f: change_config(f, hidden_act="bogus"),
        CheckpointError,
        "no model can be made of it",
    ),
    "quantised by its configuration": (
        lambda f: change_config(f, quantization_config={"quant_method": "fp8"}),
        UnsupportedModelError,
        "quantised",
    ),
    "quantised weights": (store_weights_as_int8, UnsupportedModelError, "stored as I8"),
    "no KV heads": (lambda f: change_config(f, num_key_value_heads=0), CheckpointError, "num_key_value_heads|can't be"),
    "factors that follow the batch": (
        lambda f: change_config(
            f,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 64,
                "factor": 4.0,
            },
        ),
        UnsupportedModelError,
        "longrope",
    ),
    "a kind of layer that is not served": (
        lambda f: change_config(f, layer_types=["full_attention", "linear_attention"], model_type="qwen3"),
        UnsupportedModelError,
        "linear_attention",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoints(folder: Path, damage: str) -> None:
    act, error, words = DAMAGES[damage]
    act(folder)
    refused(error, words, model=str(folder), tensor_parallel_size=2)


@pytest.mark.parametrize("name", ["missing", "notes.txt", "fake.gguf", ""])
def test_what_is_no_checkpoint_at_all(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "fake.gguf").write_text("hello")
    refused(CheckpointError, "missing|notes|fake|no config.json", model=str(tmp_path / name))
