"""Which engine fails when, and how long it waits for a spare: a discrete-event simulation of the whole fleet."""

import math
from collections.abc import Generator
from typing import Any

import msgspec
import numpy as np
import simpy

from ghostserve.errors import ConfigError
from ghostserve.fleetsim.constants import Constants

__all__ = ["Fault", "FleetSettings", "draw_faults"]

WHOLE_HOST = 1 << 20  # more than any strategy covers


class Fault(msgspec.Struct, frozen=True):
    """`engine` loses `lost` GPUs at `at` seconds, and is a whole group again `down` seconds later."""

    engine: int
    at: float
    down: float
    lost: int


class FleetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet of gpus // ranks engines for `seconds`, with `spares` GPUs that any of them may take."""

    gpus: int
    seconds: float
    per_gpu_hour: float
    gpu_share: float = 0.587
    multi_share: float = 0.02
    spares: int = 16
    repair_s: float = 4 * 3600.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gpus", "seconds", "spares", "repair_s", "per_gpu_hour", "gpu_share", "multi_share", "seed"):
            value = getattr(self, name)
            zero = name in ("per_gpu_hour", "gpu_share", "multi_share", "repair_s", "seed")
            if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
                raise ConfigError(f"{name} must be a number {'of at least' if zero else 'above'} 0, not {value}")
        if max(self.gpu_share, self.multi_share) > 1:
            raise ConfigError(f"gpu_share and multi_share must be 0 to 1, not {self.gpu_share}, {self.multi_share}")


def draw_faults(settings: FleetSettings, constants: Constants) -> list[Fault]:
    """All faults in the order of their times; the same seed gives the same. Empty where nothing fails.

    Raises `ConfigError` for fewer GPUs than one engine has.
    """
    engines = settings.gpus // constants.ranks
    if engines < 1:
        raise ConfigError(f"gpus must be at least {constants.ranks}, the ranks of one engine, not {settings.gpus}")
    found: list[Fault] = []
    if settings.per_gpu_hour == 0:
        return found
    rng = np.random.default_rng((settings.seed, 1))
    env = simpy.Environment()
    pool = simpy.Container(env, capacity=settings.spares, init=settings.spares)
    gap = 3600 / (settings.per_gpu_hour * engines * constants.ranks)

    def failing() -> Generator[Any, Any, None]:
        while True:
            yield env.timeout(rng.exponential(gap))
            if env.now >= settings.seconds:
                return
            engine, kind, second = int(rng.integers(engines)), rng.random(), rng.random()
            if kind >= settings.gpu_share:  # the host, with its memory: another start from nothing
                found.append(Fault(engine, env.now, constants.detect_s + constants.cold_start_s, WHOLE_HOST))
            else:
                env.process(replacing(engine, 2 if second < settings.multi_share else 1))

    def replacing(engine: int, lost: int) -> Generator[Any, Any, None]:
        at = env.now
        for _ in range(lost):
            yield pool.get(1)
            env.process(repairing())
        found.append(Fault(engine, at, env.now - at + constants.detect_s + constants.rejoin_s, lost))

    def repairing() -> Generator[Any, Any, None]:
        yield env.timeout(settings.repair_s)
        yield pool.put(1)

    env.process(failing())
    env.run()
    return sorted(found, key=lambda fault: (fault.at, fault.engine))
