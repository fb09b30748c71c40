"""Every strategy on the same fleet: the same arrivals, the same faults."""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from ghostserve.fleetsim.constants import Constants
from ghostserve.fleetsim.faults import Fault, FleetSettings, draw_faults
from ghostserve.fleetsim.queue import Floats, Restore, Served, serve
from ghostserve.fleetsim.strategies import restore_of
from ghostserve.traces import Arrival

__all__ = ["FleetOutcome", "simulate_fleet"]


class FleetOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One strategy over the whole fleet. Latencies in seconds; goodput is of requests that ended within the time."""

    strategy: str
    requests: int
    faults: int
    latency_p50: float
    latency_p99: float
    ttft_p50: float
    ttft_p99: float
    disturbed_p50: float
    """Latency's P50 on the engines that failed at all; 0 where none did."""
    disturbed_p99: float
    goodput: float
    """Output tokens a second."""
    lost_gpu_hours: float
    mean_recovery_s: float
    availability: float


def simulate_fleet(
    settings: FleetSettings,
    constants: Constants,
    arrivals: Callable[[int], Sequence[Arrival]],
    strategies: Sequence[str],
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> list[FleetOutcome]:
    """`arrivals(engine)` gives what comes to each engine, and the same at every call.

    An engine that never fails does the same under every strategy of the same overhead: it is simulated once for them.
    """
    faults: dict[int, list[Fault]] = {}
    for fault in draw_faults(settings, constants):
        faults.setdefault(fault.engine, []).append(fault)
    calm: dict[float, _Sums] = {}
    found = []
    for strategy in strategies:
        restore, overhead = restore_of(strategy, constants), constants.overhead.get(strategy, 0.0)
        engines = range(settings.gpus // constants.ranks)
        if overhead not in calm:
            progress("engines that never fail")
            calm[overhead] = _Sums(settings, constants)
            calm[overhead].run([e for e in engines if e not in faults], {}, arrivals, restore, overhead)
        progress(f"{strategy}: engines that fail")
        stormy = _Sums(settings, constants)
        stormy.run(sorted(faults), faults, arrivals, restore, overhead)
        found.append(_outcome(strategy, settings, constants, calm[overhead], stormy, sum(map(len, faults.values()))))
    return found


class _Sums:
    def __init__(self, settings: FleetSettings, constants: Constants) -> None:
        self._settings, self._constants = settings, constants
        # float32: a day of 10,000 GPUs is tens of millions of requests.
        self.latency: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = []
        self.ttft: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = []
        self.tokens = 0
        self.pause_s = self.recovery_s = self.recompute_s = 0.0

    def run(
        self,
        engines: Sequence[int],
        faults: dict[int, list[Fault]],
        arrivals: Callable[[int], Sequence[Arrival]],
        restore: Restore,
        overhead: float,
    ) -> None:
        for engine in engines:
            coming = arrivals(engine)
            at: Floats = np.array([a.at_seconds for a in coming], np.float64)
            output = np.array([a.output_tokens for a in coming], np.int64)
            own = faults.get(engine, [])
            served: Served = serve(
                at,
                np.array([a.prompt_tokens for a in coming], np.int64),
                output,
                fault_at=np.array([f.at for f in own], np.float64),
                fault_down=np.array([f.down for f in own], np.float64),
                fault_lost=np.array([f.lost for f in own], np.int64),
                constants=self._constants,
                restore=restore,
                overhead=overhead,
            )
            self.latency.append((served.end - at).astype(np.float32))
            self.ttft.append((served.first - at).astype(np.float32))
            self.tokens += int(output[served.end <= self._settings.seconds].sum())
            self.pause_s += served.pause_s
            self.recovery_s += served.recovery_s
            self.recompute_s += served.recomputed_tokens / self._constants.prefill_tokens_per_s


def _outcome(
    strategy: str, settings: FleetSettings, constants: Constants, calm: _Sums, stormy: _Sums, faults: int
) -> FleetOutcome:
    latency, ttft = (
        np.concatenate([np.zeros(0, np.float32), *a, *b])
        for a, b in ((calm.latency, stormy.latency), (calm.ttft, stormy.ttft))
    )
    disturbed = np.concatenate([np.zeros(0, np.float32), *stormy.latency])

    def part(values: np.ndarray[tuple[int], np.dtype[np.float32]], percent: float) -> float:
        return float(np.percentile(values, percent)) if len(values) else 0.0

    engines = settings.gpus // constants.ranks
    return FleetOutcome(
        strategy=strategy,
        requests=len(latency),
        faults=faults,
        latency_p50=part(latency, 50),
        latency_p99=part(latency, 99),
        ttft_p50=part(ttft, 50),
        ttft_p99=part(ttft, 99),
        disturbed_p50=part(disturbed, 50),
        disturbed_p99=part(disturbed, 99),
        goodput=(calm.tokens + stormy.tokens) / settings.seconds,
        lost_gpu_hours=constants.ranks * (stormy.pause_s + stormy.recompute_s) / 3600,
        mean_recovery_s=stormy.recovery_s / faults if faults else 0.0,
        availability=1 - stormy.recovery_s / (engines * settings.seconds),
    )
