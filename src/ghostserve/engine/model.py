"""A transformers model cut to one tensor-parallel rank: sharded linear layers, paged attention, partial loading."""

from collections.abc import Iterator, Mapping
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
from ghostserve.engine.weights import HostWeights, WeightLayout
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

    def settle(self) -> None:
        """Wait until the step is done and may be believed. Raises `CommunicatorError` if its group was released."""
        self._communicator.settle()

    @property
    def weight_layout(self) -> WeightLayout:
        """Where each of a rank's weights lies when all are kept in one piece; the same for every rank."""
        return WeightLayout.of({key: parameter for key, _, parameter in self._parameters()})

    def load(self, rank: int, device: torch.device | None = None, kept: HostWeights | None = None) -> int:
        """Read this rank's part of every weight; returns its bytes. Raises `CheckpointError` for a missing tensor.

        `device`: where to; None leaves the model where it was built. `kept`: the ranks' weights in host memory: taken
        from there by one copy, or read from the files and put there by whoever is the first of its rank.
        """
        if device is None:
            return self._read(rank, {key: parameter for key, _, parameter in self._parameters()})
        layout = self.weight_layout
        whole = self.place(device)
        if kept is None:
            return self._read(rank, layout.views(whole))
        if not kept.filled(rank):
            self._read(rank, layout.views(kept.tensor(rank)))
            kept.mark_filled(rank)
        kept.copy_to(whole, rank)
        return layout.nbytes

    def place(self, device: torch.device) -> torch.Tensor:
        """Give the model memory on `device`: uint8 `[bytes]`, zeros, of which the weights are views."""
        layout = self.weight_layout
        whole = torch.zeros(layout.nbytes, dtype=torch.uint8, device=device)
        self._replace(layout.views(whole))
        self._model.to(device)  # what is left: buffers
        return whole

    def strip(self) -> None:
        """Take the weights' memory away again; `place` or `load` bring it back."""
        self._replace({key: torch.empty_like(parameter, device="meta") for key, _, parameter in self._parameters()})

    def _replace(self, weights: Mapping[str, torch.Tensor]) -> None:
        for key, module, _ in list(self._parameters()):
            module._parameters[key.rpartition(".")[2]] = nn.Parameter(weights[key], requires_grad=False)

    def _parameters(self) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
        for module_name, module in self._model.named_modules():
            for tensor_name, parameter in module.named_parameters(recurse=False):
                yield f"{module_name}.{tensor_name}", module, parameter

    def _read(self, rank: int, targets: Mapping[str, torch.Tensor]) -> int:
        files: dict[str, Any] = {}
        for path in weight_files(Path(self.spec.path)):
            tensors = safe_open(path, framework="pt")
            files.update(dict.fromkeys(tensors.keys(), tensors))  # type: ignore[no-untyped-call]
        return sum(self._read_one(files, key, module, targets[key], rank) for key, module, _ in self._parameters())

    def _read_one(self, files: dict[str, Any], key: str, module: nn.Module, target: torch.Tensor, rank: int) -> int:
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
