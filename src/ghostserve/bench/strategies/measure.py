"""All ways in one run, in turns: checkpoints, recoveries, memory, and what each costs while nothing fails."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from ghostserve.bench.spread import Spread
from ghostserve.bench.strategies.lane import Decode, Killed, Lane, Prefill
from ghostserve.bench.strategies.ways import BASE, Way, with_base
from ghostserve.engine.config import EngineConfig
from ghostserve.engine.rerun import Undisturbed
from ghostserve.errors import GhostServeError

__all__ = ["ContextFigure", "KeptFigure", "Load", "StrategyFigures", "bench_strategies"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """What runs: prompts of each of `contexts` tokens, `sequences` at once; and `streams` that decode."""

    contexts: tuple[int, ...] = (256, 512, 1024, 2048)
    sequences: int = 1
    rounds: int = 3
    warm_ups: int = 1
    streams: int = 6
    prompt: int = 64
    tokens: int = 16


@dataclass(frozen=True)
class KeptFigure:
    """Bytes for the whole cache of all ranks, without records; and tokens/s of decodes, ratio: against `none`."""

    way: str
    cache_bytes: int
    host_bytes: int
    disk_bytes: int
    decode: Spread
    decode_ratio: Spread

    @property
    def host_share(self) -> float:
        return self.host_bytes / self.cache_bytes


@dataclass(frozen=True)
class ContextFigure:
    """Seconds. `checkpoint`: of the whole context, see `Watch`; `prefill_ratio`: against `none`.

    `pause`, `restore`: see `Killed`; `predicted`: medians of the kills that had one.
    """

    way: str
    context: int
    sequences: int
    prefill: Spread
    prefill_ratio: Spread
    checkpoint: Spread
    pause: Spread
    restore: Spread
    predicted: float | None
    replayed_steps: float
    recomputed_slots: float


@dataclass(frozen=True)
class StrategyFigures:
    kept: list[KeptFigure]
    contexts: list[ContextFigure]


@dataclass
class _Taken:
    """Samples of one way, a round each."""

    decodes: list[Decode] = field(default_factory=list)
    prefills: dict[int, list[Prefill]] = field(default_factory=dict)
    kills: dict[int, list[Killed]] = field(default_factory=dict)


def bench_strategies(config: EngineConfig, ways: Sequence[Way], load: Load, say: Say) -> StrategyFigures:
    """An engine for each of `ways` and for the base, all live at once; they take turns in changing order.

    Raises `GhostServeError` where two ways draw different tokens while nothing fails, or where a token of any schedule
    is not that of its undisturbed run: then no figure counts.
    """
    chosen = with_base(ways)
    with ExitStack() as stack:
        lanes = []
        for way in chosen:
            say(f"{way.name}: starting")
            lanes.append(stack.enter_context(Lane(way, config)))
        taken = {lane.way.name: _Taken() for lane in lanes}
        for number in range(-load.warm_ups, load.rounds):  # warm-ups teach engines their rates, too
            for part in (_run_decodes, _run_prefills, _run_kills):
                part(_turned(lanes, number), load, number, taken, say)
        kept = [_kept(lane, taken) for lane in lanes]
        spec, placement = lanes[0].engine.spec, lanes[0].engine.placement
    with Undisturbed(spec, placement) as oracle:
        for lane in lanes:
            say(f"{lane.way.name}: comparing with the undisturbed run")
            lane.verify(oracle)
    contexts = [_context(way, context, taken, load) for context in load.contexts for way in chosen]
    return StrategyFigures(kept, contexts)


def _turned(lanes: Sequence[Lane], number: int) -> Sequence[Lane]:
    """Each comes first in turn: what drifts during a round hits all alike."""
    shift = number % len(lanes)
    return [*lanes[shift:], *lanes[:shift]]


def _rounds(load: Load, number: int) -> str:
    return f"round {number + 1} of {load.rounds}" if number >= 0 else "warm-up"


def _run_decodes(lanes: Sequence[Lane], load: Load, number: int, taken: dict[str, _Taken], say: Say) -> None:
    say(f"{_rounds(load, number)}: {load.streams} streams decode")
    _come_to_rest(lanes)
    found = {
        lane.way.name: lane.decode(sequences=load.streams, prompt=load.prompt, tokens=load.tokens) for lane in lanes
    }
    _require_same({name: decode.tokens for name, decode in found.items()})
    if number >= 0:
        for name, decode in found.items():
            taken[name].decodes.append(decode)


def _run_prefills(lanes: Sequence[Lane], load: Load, number: int, taken: dict[str, _Taken], say: Say) -> None:
    for context in load.contexts if number >= 0 else load.contexts[:1]:
        say(f"{_rounds(load, number)}: prefills of {load.sequences} x {context}")
        found = {lane.way.name: lane.prefill(context, sequences=load.sequences) for lane in lanes}
        _require_same({name: prefill.tokens for name, prefill in found.items()})
        if number >= 0:
            for name, prefill in found.items():
                taken[name].prefills.setdefault(context, []).append(prefill)


def _run_kills(lanes: Sequence[Lane], load: Load, number: int, taken: dict[str, _Taken], say: Say) -> None:
    for context in load.contexts if number >= 0 else load.contexts[:1]:
        for lane in lanes:
            say(f"{_rounds(load, number)}: {lane.way.name}: kill at {load.sequences} x {context}")
            _come_to_rest(lanes)
            killed = lane.kill(context, sequences=load.sequences)
            if number >= 0:
                taken[lane.way.name].kills.setdefault(context, []).append(killed)


def _come_to_rest(lanes: Sequence[Lane]) -> None:
    """A standby's start takes the processor from whatever is measured."""
    for lane in lanes:
        lane.await_standbys()


def _require_same(tokens: dict[str, object]) -> None:
    for name, drawn in tokens.items():
        if drawn != tokens[BASE.name]:
            raise GhostServeError(f"{name} draws other tokens than {BASE.name} while nothing fails")


def _kept(lane: Lane, taken: dict[str, _Taken]) -> KeptFigure:
    status, spec = lane.engine.status(), lane.engine.spec
    own, base = (taken[name].decodes for name in (lane.way.name, BASE.name))
    return KeptFigure(
        way=lane.way.name,
        cache_bytes=spec.cache_layout.total_bytes * spec.tensor_parallel_size,
        host_bytes=status.parity_bytes,
        disk_bytes=status.disk_bytes,
        decode=Spread.of([d.tokens_per_s for d in own]),
        decode_ratio=Spread.of([a.tokens_per_s / b.tokens_per_s for a, b in zip(own, base, strict=True)]),
    )


def _context(way: Way, context: int, taken: dict[str, _Taken], load: Load) -> ContextFigure:
    own, base = (taken[name].prefills[context] for name in (way.name, BASE.name))
    kills = taken[way.name].kills[context]
    predicted = [k.predicted for k in kills if k.predicted is not None]
    return ContextFigure(
        way=way.name,
        context=context,
        sequences=load.sequences,
        prefill=Spread.of([p.seconds for p in own]),
        prefill_ratio=Spread.of([a.seconds / b.seconds for a, b in zip(own, base, strict=True)]),
        checkpoint=Spread.of([p.checkpoint for p in own]),
        pause=Spread.of([k.pause for k in kills]),
        restore=Spread.of([k.restore for k in kills]),
        predicted=Spread.of(predicted).median if predicted else None,
        replayed_steps=Spread.of([k.replayed_steps for k in kills]).median,
        recomputed_slots=Spread.of([k.recomputed_slots for k in kills]).median,
    )
