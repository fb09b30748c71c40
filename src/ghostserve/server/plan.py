"""Spreads a request over its choices: every prompt, `n` samples of each."""

from collections.abc import Sequence

import msgspec

from ghostserve.sampling import SamplingParams
from ghostserve.server.errors import ApiError
from ghostserve.server.generation import ChoiceSpec

__all__ = ["count_samples", "make_choices"]


def count_samples(n: int | None, most: int) -> int:
    """How many samples to draw of each prompt."""
    samples = 1 if n is None else n
    if not 1 <= samples <= most:
        raise ApiError(f"n is {samples}: it must be from 1 to {most}", param="n")
    return samples


def make_choices(
    request_id: str,
    prompts: Sequence[list[int]],
    params: Sequence[SamplingParams],
    stop: tuple[str, ...],
    samples: int,
) -> list[ChoiceSpec]:
    """The choices in the API's order: all samples of the first prompt, then those of the next."""
    choices: list[ChoiceSpec] = []
    for prompt, prompt_params in zip(prompts, params, strict=True):
        for sample in range(samples):
            index = len(choices)
            choices.append(
                ChoiceSpec(
                    index=index,
                    request_id=f"{request_id}-{index}",
                    prompt_token_ids=prompt,
                    params=_for_sample(prompt_params, sample),
                    stop=stop,
                    counts_prompt=sample == 0,
                )
            )
    return choices


def _for_sample(params: SamplingParams, sample: int) -> SamplingParams:
    """With a seed, the samples of one prompt must differ and still come out the same every time."""
    if params.seed is None or sample == 0:
        return params
    return msgspec.structs.replace(params, seed=(params.seed + sample) % 2**63)
