"""Tiny checkpoints with random weights, whole in every other way: config, safetensors, tokenizer, chat template."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 320
CONTEXT = 512
TEXT = "the ghost keeps every stream alive, token for token, when a worker dies. " * 8
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": 1,
    # Wide enough that tokens differ from each other and argmax is clear.
    "initializer_range": 0.3,
}


def llama(*, heads: int = 4, kv_heads: int = 2, **changes: object) -> LlamaConfig:
    return LlamaConfig(**SMALL | {"num_attention_heads": heads, "num_key_value_heads": kv_heads} | changes)


FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": llama(),
    "llama tied": llama(tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "qwen3": Qwen3Config(**SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "mistral": MistralConfig(**SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None}),
    "mistral sliding": MistralConfig(
        **SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 24}
    ),
    "gemma2": Gemma2Config(
        **SMALL
        | {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "sliding_window": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
            "query_pre_attn_scalar": 16,
        }
    ),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level BPE: every text has tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=TEMPLATE)


def make_checkpoint(folder: Path, config: PreTrainedConfig, *, seed: int = 1) -> Path:
    """Write a checkpoint with random weights; the same seed gives the same bytes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # initialised to zero, where a wrong bias would not show
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
