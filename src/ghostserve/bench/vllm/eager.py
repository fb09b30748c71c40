"""What eager mode costs stock vLLM on this GPU: `python -m ghostserve.bench.vllm.eager` (needs vLLM for CUDA).

The plug-in refuses CUDA graphs, so whoever switches to it pays this first. A model of Llama-3-8B's shape with made-up
weights, one rank, decode of 8 streams; with graphs and without, each in a process of its own.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

__all__ = ["EAGER", "GRAPHS", "decode_steps", "main"]

EAGER, GRAPHS = "eager", "CUDA graphs"
STREAMS, PROMPT = 8, 128
SHORT, LONG = 8, 72
"""Tokens of the two runs whose difference is pure decode."""
SAMPLES = 5
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # as with the plug-in
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
_SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}


def decode_steps(mode: str) -> list[float]:
    """Milliseconds of a decode step, `SAMPLES` of them, in this process. Raises `ValueError` for another mode."""
    if mode not in (EAGER, GRAPHS):
        raise ValueError(f"mode {mode!r}: it must be {EAGER!r} or {GRAPHS!r}")
    from vllm import LLM, SamplingParams

    # Graphs alone: what a compiler adds on top is another question.
    graphs = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [STREAMS]}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_SHAPE))
        llm = LLM(
            model=folder,
            dtype="bfloat16",
            load_format="dummy",
            skip_tokenizer_init=True,
            kv_cache_memory_bytes=2 << 30,
            max_model_len=1024,
            max_num_seqs=STREAMS,
            enable_prefix_caching=False,
            **({"enforce_eager": True} if mode == EAGER else {"compilation_config": graphs}),
        )
        prompts = [{"prompt_token_ids": [5 + (i + 7 * n) % 290 for i in range(PROMPT)]} for n in range(STREAMS)]

        def seconds(tokens: int) -> float:
            params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            began = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            return time.perf_counter() - began

        seconds(LONG)
        return [(seconds(LONG) - seconds(SHORT)) / (LONG - SHORT) * 1e3 for _ in range(SAMPLES)]


def main() -> None:
    """Print both medians, and their ratio."""
    steps: dict[str, list[float]] = {}
    for mode in (GRAPHS, EAGER):
        child = [sys.executable, "-m", __spec__.name, mode]
        done = subprocess.run(child, env={**os.environ, **_ENVIRONMENT}, stdout=subprocess.PIPE, text=True, check=True)
        steps[mode] = json.loads(done.stdout.splitlines()[-1])
        print(f"{mode}: {statistics.median(steps[mode]):.3f} ms a decode step of {STREAMS} streams", flush=True)
    ratio = statistics.median(steps[EAGER]) / statistics.median(steps[GRAPHS])
    print(json.dumps({"ms a decode step": steps, "eager / graphs": ratio}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(decode_steps(sys.argv[1])))
    else:
        main()
