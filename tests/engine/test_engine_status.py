"""What the server's door goes by: how long a recovery has taken, and the engine's own bound behind it."""

import time
from collections.abc import Iterator

import pytest

from ghostserve.engine.config import EngineConfig
from ghostserve.engine.coordinator import Coordinator
from ghostserve.engine.engine import Engine
from ghostserve.errors import RequestError
from ghostserve.recovery.events import Timeline
from ghostserve.sampling import SamplingParams


@pytest.fixture
def engine(llama_4: str) -> Iterator[Engine]:
    """Never started."""
    found = Engine(
        EngineConfig(model=llama_4, tensor_parallel_size=2, kv_cache_memory=1 << 20, device="cpu", max_num_seqs=3,
                     max_queue=2)
    )  # fmt: skip
    yield found
    found.coordinator._finish()


def test_a_recovery_is_as_old_as_its_timeline(engine: Engine) -> None:
    coordinator: Coordinator = engine.coordinator
    machine = coordinator._driver.machine
    assert coordinator._snapshot().recovering_seconds == 0.0
    began = time.monotonic() - 7.0
    machine.timeline = Timeline(began, "rank 1: killed")
    assert 7.0 <= coordinator._snapshot().recovering_seconds <= time.monotonic() - began
    machine.timeline = None
    assert coordinator._snapshot().recovering_seconds == 0.0


def test_the_engine_takes_as_many_as_it_says_and_no_more(engine: Engine) -> None:
    assert engine.max_sequences == 5
    requests = [engine.make_request(f"r{i}", (5, 6), SamplingParams(max_tokens=2)) for i in range(6)]
    answers: list[object] = []
    for request in requests[:5]:
        engine.coordinator.submit(request, answers.append)
    with pytest.raises(RequestError, match="5 requests are in the engine") as refused:
        engine.coordinator.submit(requests[5], answers.append)
    assert refused.value.status == 503
    assert answers == []
