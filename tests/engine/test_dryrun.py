"""Models that only a forward pass shows to be beyond the engine are refused before anything starts."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, CohereConfig

from ghostserve.engine.config import EngineConfig
from ghostserve.engine.dryrun import check_forward
from ghostserve.engine.modelspec import inspect_checkpoint
from ghostserve.errors import UnsupportedModelError


def test_a_norm_over_heads_that_are_not_here(tmp_path: Path) -> None:
    sizes = {"vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = CohereConfig(**sizes, num_attention_heads=4, use_qk_norm=True, max_position_embeddings=64, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    whole = inspect_checkpoint(EngineConfig(model=str(tmp_path), tensor_parallel_size=1))
    check_forward(whole)
    halved = inspect_checkpoint(EngineConfig(model=str(tmp_path), tensor_parallel_size=2))
    with pytest.raises(UnsupportedModelError, match="'cohere' can't be run on 2 ranks"):
        check_forward(halved)
