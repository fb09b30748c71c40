"""Every strategy under the same arrivals and the same failures, in one run; tokens are checked before figures are."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import msgspec

from ghostserve.bench.online.check import check_delivered, check_undisturbed
from ghostserve.bench.online.client import Played, play
from ghostserve.bench.online.faults import Case, make_cases
from ghostserve.bench.online.figures import Figure, Slo, figure_of
from ghostserve.bench.online.gauge import Gauged, gauge, warm_up
from ghostserve.bench.online.load import Load
from ghostserve.bench.online.stage import Stage
from ghostserve.bench.online.strategies import check_strategy, configure
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.engine import Engine
from ghostserve.engine.files import resolve_checkpoint
from ghostserve.engine.modelspec import inspect_checkpoint
from ghostserve.engine.rerun import Undisturbed
from ghostserve.engine.serving import LoggedStep
from ghostserve.errors import ConfigError, DiskBudgetError, GhostServeError, MemoryBudgetError
from ghostserve.traces import Arrival

__all__ = ["Online", "Plan", "bench_online", "check_settings", "sized"]

_ROOM = 1.25
"""Blocks beyond those that running requests need: freed ones rest before they are used again."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run. `slo_...` None: from the machine's own times; `limit`: seconds that one case may take."""

    strategies: tuple[str, ...]
    percents: tuple[float, ...]
    mtbf: float | None = None
    slo_ttft: float | None = None
    slo_per_token: float | None = None
    limit: float = 600.0
    sabotage: bool = False
    """Newcomers keep their poisoned KV: for the proof that a wrong token is found."""


@dataclass
class Online:
    """What came of it: figures; strategies that are refused here, and that failed, with the reason."""

    arrivals: list[Arrival]
    cases: list[Case]
    rate: float
    slo: Slo
    gauged: Gauged
    config: EngineConfig
    figures: list[Figure] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    compared: int = 0
    """Tokens that were compared with the undisturbed run's."""


@dataclass
class _Run:
    """One strategy's engine when it has stopped."""

    strategy: str
    stage: Stage
    played: list[tuple[Case, Played]] = field(default_factory=list)

    @property
    def recording(self) -> list[LoggedStep]:
        return self.stage.engine.coordinator.recording


def bench_online(config: EngineConfig, load: Load, plan: Plan, *, progress: Callable[[str], None]) -> Online:
    """Raises `ConfigError` for bad settings or if every strategy is refused, `GhostServeError` for a wrong token."""
    check_settings(load, plan, config.tensor_parallel_size)
    config = msgspec.structs.replace(config, model=str(resolve_checkpoint(config.model)))
    sizes = load.arrivals(1.0)
    config = sized(config, sizes)
    # On a CPU other programs come and go: engines that live at once and take turns are hit alike. A GPU holds one.
    groups = [plan.strategies] if config.device == "cpu" else [(strategy,) for strategy in plan.strategies]
    online: Online | None = None
    refused: dict[str, str] = {}
    runs: list[_Run] = []
    for group in groups:
        with ExitStack() as stack:
            opened = _open(stack, config, group, plan, refused, progress)
            for run in opened:
                warm_up(run.stage, sizes, limit=plan.limit, progress=_named(progress, run.strategy))
            if opened:
                online = online or _prepare(opened[0].stage, load, plan, _named(progress, opened[0].strategy))
                _take_turns(opened, online, plan, progress)
            runs += opened
    if online is None:
        raise ConfigError(f"no strategy can run here: {next(iter(refused.values()))}")
    online.refused = refused
    _check(online, runs, progress)
    for run in runs:
        online.figures += [figure_of(run.strategy, case, played, online.slo) for case, played in run.played]
    return online


def check_settings(load: Load, plan: Plan, ranks: int) -> None:
    """Raise `ConfigError` for what can be told without a model."""
    if ranks < 2:
        raise ConfigError(f"tensor_parallel_size must be at least 2 to lose a rank, not {ranks}")
    for strategy in plan.strategies:
        check_strategy(strategy)
    if not plan.strategies or not (plan.percents or plan.mtbf is not None):
        raise ConfigError("at least one strategy, and one failure rate or mtbf, are needed")
    for name in ("slo_ttft", "slo_per_token"):
        value = getattr(plan, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be seconds above 0, not {value}")
    if not plan.limit > 0:
        raise ConfigError(f"time_limit must be seconds above 0, not {plan.limit}")
    outputs = [a.output_tokens for a in load.arrivals(load.rate if load.rate is not None else 1.0)]
    make_cases(outputs, percents=plan.percents, mtbf=plan.mtbf, span=0.0, ranks=ranks, seed=load.seed)


def sized(config: EngineConfig, arrivals: Sequence[Arrival]) -> EngineConfig:
    """`config` with the context and the KV cache that `max_num_seqs` of the longest arrivals need at once."""
    longest = max(a.prompt_tokens + a.output_tokens for a in arrivals)
    # With the shortest context: the cache as it was configured may be too small for the longest.
    spec = inspect_checkpoint(msgspec.structs.replace(config, max_model_len=2))
    together = min(config.max_num_seqs, len(arrivals))
    slots = int(together * _ROOM * (longest + 2 * config.block_size))
    needed = slots * spec.cache_layout.slot_bytes * config.tensor_parallel_size
    return msgspec.structs.replace(
        config, max_model_len=longest, kv_cache_memory=needed, max_queue=max(config.max_queue, len(arrivals))
    )


def _open(
    stack: ExitStack,
    config: EngineConfig,
    strategies: Sequence[str],
    plan: Plan,
    refused: dict[str, str],
    progress: Callable[[str], None],
) -> list[_Run]:
    """Engines that serve, until `stack` ends; why the others don't goes into `refused`."""
    opened = []
    for strategy in strategies:
        try:
            stage = Stage(configure(config, strategy), skip_rebuild=plan.sabotage)
        except (ConfigError, MemoryBudgetError, DiskBudgetError) as error:
            refused[strategy] = str(error)
            progress(f"{strategy} is refused: {error}")
            continue
        progress(f"{strategy}: starting")
        opened.append(_Run(strategy, stack.enter_context(stage)))
    return opened


def _take_turns(runs: Sequence[_Run], online: Online, plan: Plan, progress: Callable[[str], None]) -> None:
    """All cases on all engines; each case begins with the engine that ended the one before."""
    for number, case in enumerate(online.cases):
        for run in runs if number % 2 == 0 else reversed(runs):
            if run.strategy in online.failed:
                continue
            say = _named(progress, f"failures {case.label}, {run.strategy}")
            say(f"{len(online.arrivals)} requests in {online.arrivals[-1].at_seconds:.1f} s")
            try:
                played = play(run.stage, online.arrivals, case, name=f"case{number}", limit=plan.limit, progress=say)
            except GhostServeError as error:
                online.failed[run.strategy] = f"failures {case.label}: {error}"
                say(f"failed: {error}")
            else:
                run.played.append((case, played))


def _prepare(stage: Stage, load: Load, plan: Plan, progress: Callable[[str], None]) -> Online:
    """What is sent to all, from what this machine can take."""
    gauged = gauge(stage, load.arrivals(1.0), limit=plan.limit, progress=progress)
    rate = load.rate if load.rate is not None else gauged.rate
    arrivals = load.arrivals(rate)
    span = arrivals[-1].at_seconds
    cases = make_cases(
        [a.output_tokens for a in arrivals],
        percents=plan.percents,
        mtbf=plan.mtbf,
        span=span,
        ranks=stage.config.tensor_parallel_size,
        seed=load.seed,
    )
    actual = (len(arrivals) - 1) / span if span else rate
    slo = Slo(plan.slo_ttft or gauged.slo.ttft, plan.slo_per_token or gauged.slo.per_token)
    return Online(arrivals, cases, actual, slo, gauged, stage.config)


def _check(online: Online, runs: Sequence[_Run], progress: Callable[[str], None]) -> None:
    outputs = [a.output_tokens for a in online.arrivals]
    for run in runs:
        for _, played in run.played:
            check_delivered(run.strategy, played.streams, outputs, run.recording)
    engine: Engine = runs[0].stage.engine
    with Undisturbed(engine.spec, engine.placement) as oracle:
        for run in runs:
            say = _named(progress, f"{run.strategy}: comparing with the undisturbed run")
            online.compared += check_undisturbed(run.strategy, oracle, run.recording, _quarters(say))


def _quarters(say: Callable[[str], None]) -> Callable[[int, int], None]:
    def on_progress(done: int, total: int) -> None:
        if done % max(1, total // 4) == 0:
            say(f"{done} of {total} steps")

    return on_progress


def _named(progress: Callable[[str], None], name: str) -> Callable[[str], None]:
    return lambda text: progress(f"{name}: {text}")
