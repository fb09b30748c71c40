"""A model runner's memory of its requests: taken away, put back, and what its random numbers hang on.

vLLM's model runner (V1) keeps requests between steps. Whatever it holds of them follows from the executor's step log
and from the random states, so every rank, newcomer or survivor, is brought to the same state in the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from vllm.sampling_params import SamplingType
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.gpu_input_batch import CachedRequestState
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from ghostserve.vllm.steplog import RequestState

__all__ = ["RandomState", "RandomStates", "fresh", "now", "restore"]


@dataclass(frozen=True)
class RandomState:
    """The device's default generator, and those of requests with a seed of their own."""

    default: torch.Tensor
    seeded: Mapping[str, torch.Tensor]


class RandomStates:
    """What a rank's random states were before each step that may be run again."""

    def __init__(self, runner: GPUModelRunner) -> None:
        self._runner = runner
        self._before: dict[int, RandomState] = {}

    def note(self, step: int, settled: int) -> None:
        """`step` is about to run; none up to `settled` will be run again."""
        self._before = {number: state for number, state in self._before.items() if settled < number < step}
        self._before[step] = now(self._runner)

    def before(self, step: int) -> RandomState:
        """As they were when `step` began; as they are, if this rank has not begun it."""
        return self._before.get(step) or now(self._runner)


def now(runner: GPUModelRunner) -> RandomState:
    """The random states as they are."""
    seeded = {
        name: request.generator.get_state()
        for name, request in runner.requests.items()
        if request.generator is not None
    }
    return RandomState(_get_state(runner.device), seeded)


def restore(
    runner: GPUModelRunner, requests: Sequence[RequestState], batch: Sequence[str], random: RandomState
) -> None:
    """Forget all requests, then know `requests`, those of `batch` being in the running batch in that order."""
    runner.execute_model_state = None
    runner.kv_connector_output = None
    forget = SchedulerOutput.make_empty()
    forget.finished_req_ids = set(runner.requests)
    runner._update_states(forget)
    for request in requests:
        _know(runner, request, random.seeded.get(request.new.req_id))
    for name in batch:
        if name in runner.requests:
            runner.input_batch.add_request(runner.requests[name])
    runner.input_batch.condense()
    runner.input_batch.refresh_metadata()
    # All tokens are known here: nothing is taken from the step before on the device.
    runner.input_batch.prev_sampled_token_ids = None
    runner.input_batch.prev_req_id_to_index = None
    _set_state(runner.device, random.default)


def _know(runner: GPUModelRunner, request: RequestState, seeded: torch.Tensor | None) -> None:
    new = request.new
    params = new.sampling_params
    generator = None
    if params is not None and params.sampling_type == SamplingType.RANDOM_SEED:
        generator = torch.Generator(device=runner.device)
        generator.manual_seed(params.seed)
        if seeded is not None:
            generator.set_state(seeded)
    runner.requests[new.req_id] = CachedRequestState(
        req_id=new.req_id,
        prompt_token_ids=new.prompt_token_ids,
        prompt_embeds=new.prompt_embeds,
        prompt_is_token_ids=new.prompt_is_token_ids,
        mm_features=new.mm_features,
        sampling_params=params,
        pooling_params=new.pooling_params,
        generator=generator,
        block_ids=(list(request.blocks),),
        num_computed_tokens=request.num_computed,
        output_token_ids=list(request.outputs),
        lora_request=new.lora_request,
    )
    if params is not None and params.prompt_logprobs is not None:
        everything = params.prompt_logprobs == -1
        runner.num_prompt_logprobs[new.req_id] = runner.input_batch.vocab_size if everything else params.prompt_logprobs


def _get_state(device: torch.device) -> torch.Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


def _set_state(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)


def fresh(device: torch.device, seed: int) -> RandomState:
    """A new random state: after a loss of everything, where it must not matter who is left."""
    generator = torch.Generator(device=device)
    generator.manual_seed(seed)
    return RandomState(generator.get_state(), {})
