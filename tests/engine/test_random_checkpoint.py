"""Checkpoints in the shape of a known model, and where the time of a pause goes."""

from pathlib import Path

import pytest

from ghostserve.bench.pause import _phases
from ghostserve.bench.shapes import SHAPES, make_checkpoint, shape_checkpoint
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.files import load_tokenizer
from ghostserve.engine.modelspec import inspect_checkpoint
from ghostserve.errors import ConfigError
from ghostserve.status import RecoveryRecord


def test_the_engine_takes_it_and_it_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_checkpoint(tmp_path / name, SHAPES["tiny"])
    spec = inspect_checkpoint(EngineConfig(model=str(tmp_path / "a"), tensor_parallel_size=4))
    assert (spec.dtype, spec.num_kv_heads, spec.vocab_size) == ("bfloat16", 4, 1024)
    load_tokenizer(tmp_path / "a")
    files = [sorted((tmp_path / name).glob("*.safetensors")) for name in ("a", "b")]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]] != []


def test_llama_3_8b_has_its_size() -> None:
    """8.03 billion parameters."""
    s = SHAPES["llama-3-8b"]
    attention = 2 * s.hidden * s.hidden + 2 * s.hidden * s.kv_heads * (s.hidden // s.heads)
    layer = attention + 3 * s.hidden * s.intermediate + 2 * s.hidden
    assert s.layers * layer + 2 * s.vocabulary * s.hidden + s.hidden == 8_030_261_248


def test_an_unknown_shape() -> None:
    with (
        pytest.raises(ConfigError, match="shape 'huge' is unknown; allowed: tiny, "),
        shape_checkpoint("huge", lambda text: None),
    ):
        pass


def test_the_phases_add_up_to_the_pause() -> None:
    record = RecoveryRecord(
        epoch=2, reason="", lost_ranks=[1], seconds=1.0, bytes_rebuilt=0, replayed_steps=0, recomputed_requests=0,
        phases=[("detected", 0.0), ("spawned", 0.1), ("released", 0.3), ("weights", 0.2), ("rejoined", 0.7),
                ("rebuilt", 0.8), ("replayed", 1.0), ("resumed", 1.0)],
    )  # fmt: skip
    phases = _phases(record, 0.05, 1.5)
    assert sum(seconds for _, seconds in phases) == pytest.approx(1.5)
    assert all(seconds >= 0 for _, seconds in phases)
    assert dict(phases)["new group, caches mapped"] == pytest.approx(0.4)
    assert dict(phases)["the next token of every stream"] == pytest.approx(0.45)
