"""Schedules of vLLM's engine, step by step, with synchronous and asynchronous scheduling: a kill changes no bit.

The tests are scenes of one engine's life; the last one runs the schedule of all of them again, undisturbed.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from models import VOCABULARY
from oracle import assert_undisturbed
from stepped import SteppedEngine
from vllm.sampling_params import StructuredOutputsParams

pytestmark = pytest.mark.vllm

LENGTHS = (24, 100, 300, 61)


@pytest.fixture(scope="module", params=["synchronous", "asynchronous"])
def engine(
    request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory, vllm_environment: None
) -> Iterator[SteppedEngine]:
    """With 40 blocks of 32 tokens: more than a request needs, less than many do."""
    folder = tmp_path_factory.mktemp("engine")
    engine = SteppedEngine(llama, folder, asynchronous=request.param == "asynchronous", num_blocks=40)
    yield engine
    engine.close()


def prompt(length: int, seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(2, VOCABULARY) for _ in range(length)]


def test_the_same_as_before_without_a_kill(engine: SteppedEngine) -> None:
    """The same engine and the same requests, first undisturbed, then with a kill in prefill and two in decode."""
    prompts = [prompt(length, seed) for seed, length in enumerate(LENGTHS)]
    undisturbed = [engine.add(p, max_tokens=24 + 3 * i) for i, p in enumerate(prompts)]
    steps = engine.run()
    engine.forget_prefixes()
    killed = [engine.add(p, max_tokens=24 + 3 * i) for i, p in enumerate(prompts)]
    assert engine.run(kills={2: 0, 9: 1, 20: 0}) == steps
    assert [engine.drawn(name) for name in killed] == [engine.drawn(name) for name in undisturbed]
    assert [record.lost_ranks for record in engine.status().recoveries[-3:]] == [[0], [1], [0]]


def test_kills_while_requests_sample(engine: SteppedEngine) -> None:
    """With and without a seed of their own. vLLM can't cut prompts of seeded requests on the CPU: these are short."""
    names = [engine.add(prompt(20 + 10 * i, i), temperature=0.9, top_p=0.95, seed=7) for i in range(3)]
    names += [engine.add(prompt(33, 10 + i), temperature=0.9, top_k=50) for i in range(3)]
    before = len(engine.status().recoveries)
    engine.run(kills={4: 0, 12: 1})
    assert len(engine.status().recoveries) == before + 2
    assert all(len(engine.drawn(name)[0]) == 24 for name in names)
    assert len({tuple(engine.drawn(name)[0]) for name in names}) == len(names)


def test_kills_while_memory_is_short(engine: SteppedEngine) -> None:
    """One kill right after a request lost its blocks to others, one after it is back, in the blocks of yet others."""
    seen = len(engine.steps())
    before = len(engine.status().recoveries)
    names = [engine.add(prompt(200, 20 + i), max_tokens=120) for i in range(6)]
    engine.run(when=[(lambda e: e.num_preempted() > 0, 1), (lambda e: e.num_preempted() == 0, 0)])
    assert len(engine.status().recoveries) == before + 2
    assert all(record.recomputed_requests == 0 for record in engine.status().recoveries)
    assert any(step.scheduled.scheduled_cached_reqs.resumed_req_ids for step in engine.steps()[seen:])
    assert all(len(engine.drawn(name)[0]) == 120 for name in names)


def test_kills_while_a_prompt_is_scored(engine: SteppedEngine) -> None:
    """Its logprobs gather over three chunks; the first and the second one are lost."""
    scored = {"prompt_logprobs": 1, "max_tokens": 8}
    undisturbed = engine.add(prompt(600, 30), **scored)
    engine.run()
    engine.forget_prefixes()
    killed = engine.add(prompt(600, 30), **scored)
    engine.run(kills={2: 0, 3: 1})
    assert len(engine.prompt_logprobs(killed)) == 600
    assert engine.prompt_logprobs(killed) == engine.prompt_logprobs(undisturbed)
    assert engine.drawn(killed) == engine.drawn(undisturbed)


def test_kills_while_a_grammar_is_followed(engine: SteppedEngine) -> None:
    expression = "(ghost|stream|token)-[0-9]{12}-[a-f]{12}"
    rules = {"structured_outputs": StructuredOutputsParams(regex=expression), "max_tokens": 60, "ignore_eos": False}
    starts = engine.encode("the ghost"), engine.encode("keeps every stream"), engine.encode("alive, token for token")

    def play(kills: dict[int, int]) -> list[str]:
        engine.forget_prefixes()
        bound = [engine.add(start, **rules) for start in starts]
        engine.add(prompt(50, 50), max_tokens=30)  # in the same steps, and free
        engine.run(kills)
        return bound

    undisturbed, killed = play({}), play({4: 1, 12: 0})
    texts = [engine.text(name) for name in killed]
    assert all(re.fullmatch(expression, text) for text in texts), texts
    assert [engine.drawn(name) for name in killed] == [engine.drawn(name) for name in undisturbed]


def test_requests_are_aborted_right_before_a_kill(engine: SteppedEngine) -> None:
    names = [engine.add(prompt(60, 60 + i), max_tokens=30) for i in range(6)]
    for _ in range(8):
        engine.step()
    engine.abort(names[0], names[4])
    engine.run(kills={1: 1})
    assert [len(engine.drawn(name)[0]) == 30 for name in names] == [False, True, True, True, False, True]


def test_the_whole_life_is_what_an_undisturbed_one_would_have_been(engine: SteppedEngine) -> None:
    assert engine.status().counters["replay_mismatches"] == 0
    engine.close()
    assert_undisturbed(engine.record)
