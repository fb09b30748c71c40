"""Model families with random weights: the tokens are those of transformers' own `generate`, also when a rank dies."""

from pathlib import Path

import pytest
import tiny
import torch
from scene import decoding, running
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig, PreTrainedConfig
from transformers.models.bert import BertConfig
from transformers.models.deepseek_v3 import DeepseekV3Config

from ghostserve.engine.communicator import make_communicator
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.messages import Draw, SequencePart, StepPlan
from ghostserve.engine.model import ShardedModel
from ghostserve.engine.modelspec import inspect_checkpoint
from ghostserve.engine.runner import StepRunner
from ghostserve.errors import UnsupportedModelError

PROMPTS = [tuple(range(2, 60)), (7, 7, 7), tuple(range(300, 200, -1))]
TOKENS = 24


def generated(checkpoint: str, prompt: tuple[int, ...], count: int = TOKENS) -> list[int]:
    """Greedy tokens as transformers draws them, by itself."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.tensor([prompt])
    # A length instead of an end: the random model may draw its end-of-text token at any time.
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, eos_token_id=-1
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_one_rank_in_this_process(checkpoint, family: str) -> None:  # type: ignore[no-untyped-def]
    """The model and the runner alone: prefill in chunks of 25, then one token a step."""
    folder = checkpoint(family)
    spec = inspect_checkpoint(EngineConfig(model=folder, kv_cache_memory=1 << 22))
    model = ShardedModel(spec, make_communicator("cpu", 1))
    model.load(0)
    arena = torch.zeros(spec.cache_layout.total_bytes, dtype=torch.uint8)
    runner = StepRunner(spec, model, arena)
    blocks = tuple(range(5, 5 + 10))
    draw = Draw(0.0, 1.0, 0, 0, 0, None)
    for prompt in PROMPTS:
        tokens, done = list(prompt), 0
        while len(tokens) < len(prompt) + TOKENS:
            stop = min(done + 25, len(tokens))
            last = stop == len(tokens)
            part = SequencePart("r", tuple(tokens[done:stop]), done, blocks[: -(-stop // 16)], draw if last else None)
            sampled = runner.run(StepPlan(1, (part,)))
            tokens += [s.token_id for s in sampled]
            done = stop
        assert tokens[len(prompt) :] == generated(folder, prompt)


@pytest.mark.parametrize(
    "family",
    ["qwen2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "mistral sliding", "gemma2"))],
)
def test_two_ranks_one_of_which_dies(checkpoint, family: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = checkpoint(family)
    with running(tmp_path / "points", model=folder, tensor_parallel_size=2, dtype="float32", standbys=1) as stage:
        scene = stage.scene(standbys=0)
        streams = [s for prompt in PROMPTS for s in scene.stream(1, prompt=prompt, tokens=TOKENS)]
        scene.when(decoding(8)).kill(1)
        scene.finish(recoveries=1)
        scene.assert_rebuilt(1)
        scene.assert_delivered()
        for stream in streams:
            assert stream.tokens == generated(folder, stream.prompt)


SMALL = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}
REFUSED: list[tuple[PreTrainedConfig, str]] = [
    (MixtralConfig(**SMALL, **HEADS, num_local_experts=4), "mixtral"),
    (DeepseekV3Config(**SMALL, **HEADS), "deepseek_v3"),
    (GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4), "gpt2"),
    (BertConfig(**SMALL, num_attention_heads=4), "bert"),
]


@pytest.mark.parametrize(("config", "name"), REFUSED, ids=[name for _, name in REFUSED])
def test_models_that_are_refused_by_name(config: PreTrainedConfig, name: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=f"'{name}'"):
        inspect_checkpoint(EngineConfig(model=str(tmp_path)))
