"""`ghostserve demo`: its options."""

from pathlib import Path

from ghostserve.cli.options import Ranks

__all__ = ["demo"]


def demo(
    *,
    model: str | None = None,
    tensor_parallel_size: Ranks = 3,
    parity: str = "rs:1",
    max_tokens: int = 96,
    longest_prompt: int = 1450,
    sabotage: str | None = None,
    plain: bool = False,
    svg: Path | None = None,
) -> int:
    """Kill two workers under six chat streams, then compare every token with an undisturbed run.

    Exits with 0 only if both recoveries happened and every token and logprob is the same.

    Parameters
    ----------
    model
        A transformers checkpoint folder, or a .gguf file; the bundled SmolLM2-135M-Instruct by default.
    tensor_parallel_size
        Worker processes that share the model.
    parity
        The code that protects the KV cache: xor, rdp or rs:K.
    max_tokens
        Tokens that each stream generates.
    longest_prompt
        Tokens of the longest prompt, without its chat template; fewer where the model's context is short.
    sabotage
        skip-rebuild: the newcomer keeps its poisoned KV, to prove that the comparison can fail.
    plain
        Lines instead of a live picture, as when the output is no terminal.
    svg
        Save the last picture as an SVG file.
    """
    from ghostserve.cli.demo import DemoSettings, run_demo

    settings = DemoSettings(
        model=model,
        tensor_parallel_size=tensor_parallel_size,
        parity=parity,
        max_tokens=max_tokens,
        longest_prompt=longest_prompt,
        sabotage=sabotage,
    )
    return run_demo(settings, plain=plain, svg=svg)
