"""One small scenario, in the real engine and in the simulator: the same arrivals and the same kills."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass

import numpy as np

from ghostserve.bench.calibrate.probe import Probe
from ghostserve.errors import ConfigError, GhostServeError
from ghostserve.fleetsim import Constants, restore_of, serve
from ghostserve.sampling import SamplingParams
from ghostserve.traces import Arrival, poisson

__all__ = ["Measured", "Scenario", "make_scenario", "run_real", "run_simulated"]

_LOAD = 0.5
"""Of what the engine can take at most. Nearer to the limit latency is decided by how fast the machine happens to be."""
_KILLS = ((0.1, 0.2), (0.3, 0.4), (0.5, 0.6), (0.7, 0.8))
"""Each kill comes within this part of the time from the first arrival to the last."""


@dataclass(frozen=True)
class Scenario:
    """`arrivals` to one engine, and (seconds, rank) of each kill."""

    arrivals: tuple[Arrival, ...]
    kills: tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class Measured:
    """Seconds: latencies of requests, from the first arrival to the last token, and the mean pause after a kill."""

    mean: float
    p99: float
    ttft: float
    makespan: float
    pause: float


def make_scenario(constants: Constants, *, requests: int, max_model_len: int, seed: int) -> Scenario:
    """Poisson arrivals at half of what `constants` say the engine can take; four kills. All from `seed`.

    Raises `ConfigError` for fewer than 10 requests, or a context below 64 tokens.
    """
    if requests < 10 or max_model_len < 64:
        raise ConfigError(f"at least 10 requests and a context of 64 are needed, not {requests} and {max_model_len}")
    prompt = (max_model_len // 32, max_model_len // 4)
    output = (max_model_len // 16, max_model_len // 6)
    c, each, drawn = constants, sum(prompt) / 2, sum(output) / 2
    alone = each / c.prefill_tokens_per_s + drawn * (c.decode_step_s / c.max_num_seqs + c.decode_seq_s)
    arrivals = poisson(_LOAD / alone, requests, prompt=prompt, output=output, seed=seed)
    rng, first, last = np.random.default_rng((seed, 4)), arrivals[0].at_seconds, arrivals[-1].at_seconds
    kills = tuple((first + float(rng.uniform(*part)) * (last - first), int(rng.integers(c.ranks))) for part in _KILLS)
    return Scenario(tuple(arrivals), kills)


def run_simulated(scenario: Scenario, constants: Constants, strategy: str) -> Measured:
    """What the simulator says of it."""
    at = np.array([a.at_seconds for a in scenario.arrivals])
    served = serve(
        at,
        np.array([a.prompt_tokens for a in scenario.arrivals]),
        np.array([a.output_tokens for a in scenario.arrivals]),
        fault_at=np.array([moment for moment, _ in scenario.kills], np.float64),
        fault_down=np.array(_downs(scenario, constants), np.float64),
        fault_lost=np.ones(len(scenario.kills), np.int64),
        constants=constants,
        restore=restore_of(strategy, constants),
        overhead=constants.overhead.get(strategy, 0.0),
    )
    return _measured(at, served.first, served.end, served.pause_s / max(1, len(scenario.kills)))


def _downs(scenario: Scenario, constants: Constants) -> list[float]:
    """Seconds until each group is whole: a rank that dies while the last one's standby still starts waits for it."""
    downs, ready = [], 0.0
    for moment, _ in scenario.kills:
        wait = max(constants.detect_s, ready - moment)
        downs.append(wait + constants.rejoin_s)
        ready = max(moment, ready) + constants.standby_s
    return downs


def run_real(scenario: Scenario, probe: Probe) -> Measured:
    """Send the requests at their times, kill ranks at theirs. Raises `GhostServeError` if a stream is not whole."""
    probe.await_standbys()
    probe.watch.clear()
    engine, vocabulary = probe.engine, probe.engine.spec.vocab_size
    count = len(scenario.arrivals)
    first, end, killed = np.full(count, np.nan), np.full(count, np.nan), list[float]()
    name = f"scenario-{time.monotonic_ns()}"

    async def stream(index: int, arrival: Arrival, start: float) -> None:
        await asyncio.sleep(start + arrival.at_seconds - time.monotonic())
        prompt = [(index * 7919 + position * 104729) % vocabulary for position in range(arrival.prompt_tokens)]
        params = SamplingParams(temperature=0.0, max_tokens=arrival.output_tokens, ignore_eos=True)
        got = 0
        async for _ in engine.generate(f"{name}-{index}", prompt, params):
            got += 1
            end[index] = time.monotonic() - start
            if got == 1:
                first[index] = end[index]
        if got != arrival.output_tokens:
            raise GhostServeError(f"request {index} had {got} tokens of {arrival.output_tokens}")

    async def kill(moment: float, rank: int, start: float) -> None:
        await asyncio.sleep(start + moment - time.monotonic())
        killed.append(time.monotonic())
        os.kill(engine.status().ranks[rank].pid, signal.SIGKILL)

    async def everything() -> None:
        start = time.monotonic() + 0.05
        await asyncio.gather(
            *(stream(index, arrival, start) for index, arrival in enumerate(scenario.arrivals)),
            *(kill(moment, rank, start) for moment, rank in scenario.kills),
        )

    asyncio.run(everything())
    pauses = [probe.watch.kill(moment).pause_s for moment in killed]
    at = np.array([a.at_seconds for a in scenario.arrivals])
    return _measured(at, first, end, float(np.mean(pauses)) if pauses else 0.0)


def _measured(
    at: np.ndarray[tuple[int], np.dtype[np.float64]],
    first: np.ndarray[tuple[int], np.dtype[np.float64]],
    end: np.ndarray[tuple[int], np.dtype[np.float64]],
    pause: float,
) -> Measured:
    latency = end - at
    return Measured(
        mean=float(latency.mean()),
        p99=float(np.percentile(latency, 99)),
        ttft=float((first - at).mean()),
        makespan=float(end.max() - at.min()),
        pause=pause,
    )
