"""A transformers model cut to one tensor-parallel rank: sharded linear layers, paged attention, partial loading."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from ghostserve.engine.attention import ATTENTION, PagedBatch, register_attention
from ghostserve.engine.communicator import Communicator
from ghostserve.engine.linear import ColwiseLinear, RowwiseLinear, ShardedLinear, VocabLinear
from ghostserve.engine.modelspec import ModelSpec, plan_style, weight_files
from ghostserve.errors import CheckpointError, UnsupportedModelError

__all__ = ["ShardedModel"]


class ShardedModel:
    """One rank's part of a causal language model.

    Built without weights and without a rank, so that a standby can hold it ready; `load(rank)` fills it.
    """

    def __init__(self, spec: ModelSpec, communicator: Communicator) -> None:
        register_attention()
        self.spec = spec
        self._communicator = communicator
        hf = AutoConfig.from_pretrained(spec.path, local_files_only=True)
        with no_init_weights():
            self._model: Any = AutoModelForCausalLM.from_config(
                hf, dtype=spec.torch_dtype, attn_implementation=ATTENTION
            )
        self._tied = bool(getattr(hf, "tie_word_embeddings", False))
        self._shard(hf.base_model_tp_plan)
        self._model.eval()

    @torch.inference_mode()
    def logits(
        self, token_ids: torch.Tensor, positions: torch.Tensor, batch: PagedBatch, rows: torch.Tensor
    ) -> torch.Tensor:
        """token_ids, positions int64 `[T]`, rows int64 `[R]` (which tokens to give logits for).

        Returns float32 `[R, vocab]` on rank 0 and `[0, vocab]` elsewhere. Raises `CommunicatorError` if a peer dies.
        """
        out = self._model(
            input_ids=token_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=rows,
            paged=batch,
        )
        logits: torch.Tensor = out.logits[0]
        return logits

    def load(self, rank: int) -> int:
        """Read this rank's part of every weight; returns bytes read. Raises `CheckpointError` for a missing tensor."""
        files = {}
        for path in weight_files(Path(self.spec.path)):
            tensors = safe_open(path, framework="pt")
            files.update(dict.fromkeys(tensors.keys(), tensors))  # type: ignore[no-untyped-call]
        total = 0
        for module_name, module in self._model.named_modules():
            for tensor_name, parameter in module.named_parameters(recurse=False):
                key = f"{module_name}.{tensor_name}"
                total += self._load_one(files, key, module, parameter, rank)
        return total

    def _load_one(self, files: dict[str, Any], key: str, module: nn.Module, target: nn.Parameter, rank: int) -> int:
        source = key
        if source not in files and self._tied and key == "lm_head.weight":
            source = next((name for name in files if name.endswith("embed_tokens.weight")), key)
        if source not in files:
            raise CheckpointError(f"{self.spec.path} has no tensor {key!r}")
        stored = files[source].get_slice(source)
        cut = module.part(rank, len(stored.get_shape())) if isinstance(module, ShardedLinear) else slice(None)
        part = stored[cut]
        with torch.no_grad():
            if isinstance(module, VocabLinear):
                target.zero_()
                target[: part.shape[0]].copy_(part)
            elif part.shape == target.shape:
                target.copy_(part)
            else:
                raise CheckpointError(
                    f"{self.spec.path}: tensor {key!r} has shape {list(part.shape)}, expected {list(target.shape)}"
                )
        return target.numel() * target.element_size()

    def _shard(self, plan: dict[str, str]) -> None:
        base = self._model.base_model
        spec, world = self.spec, self._communicator.world_size
        for name, module in list(base.named_modules()):
            style = plan_style(plan, name)
            if style == "colwise":
                replicas = 1
                if name.endswith(("k_proj", "v_proj")):
                    replicas = max(1, world // spec.num_kv_heads)
                parts = world // replicas
                self._check(name, module, module.out_features, parts)
                sharded: nn.Module = ColwiseLinear(module, module.out_features // parts, replicas)
            elif style == "rowwise":
                self._check(name, module, module.in_features, world)
                sharded = RowwiseLinear(module, module.in_features // world, self._communicator)
            else:
                continue
            base.set_submodule(name, sharded)
        head = self._model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise UnsupportedModelError(f"the language-model head is a {type(head).__name__}, not a linear layer")
        self._model.set_output_embeddings(VocabLinear(head, self._communicator))

    def _check(self, name: str, module: nn.Module, features: int, parts: int) -> None:
        if not isinstance(module, nn.Linear):
            raise UnsupportedModelError(f"{name} is a {type(module).__name__}; only linear layers can be sharded")
        if features % parts:
            raise UnsupportedModelError(f"the {features} features of {name} do not divide into {parts} parts")
