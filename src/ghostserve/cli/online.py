"""`ghostserve bench online`: from the command line to `bench_online`, its tables, JSON and picture."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ghostserve.cli.commands.online import OnlineOptions
from ghostserve.errors import ConfigError

if TYPE_CHECKING:
    from ghostserve.bench.online.bench import Plan
    from ghostserve.bench.online.load import Load
    from ghostserve.cli.bench import BenchSettings

__all__ = ["run_online"]

_QUICK = OnlineOptions(
    strategies="none,parity-rebuild,parity-hybrid", failures="0,15", requests=8, prompt="100,300", output_tokens="8,16"
)
"""Whether it runs; the figures say nothing."""


def run_online(
    console: Console, settings: "BenchSettings", options: OnlineOptions, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure, print tables, draw a picture where one is wanted; the JSON.

    Raises `ConfigError`, `GhostServeError`.
    """
    from ghostserve.bench.online.bench import bench_online, check_settings
    from ghostserve.bench.online.report import as_json, described, tables
    from ghostserve.bench.workload import bench_config

    load, plan = _load(settings, options), _plan(settings, options)
    check_settings(load, plan, settings.tensor_parallel_size)
    with ExitStack() as stack:
        if settings.shape is not None:
            from ghostserve.bench.shapes import shape_checkpoint

            model = str(stack.enter_context(shape_checkpoint(settings.shape, say)))
        else:
            from ghostserve.cli.bundled import bundled_model

            model = settings.model or str(bundled_model())
        config = bench_config(
            model,
            settings.tensor_parallel_size,
            settings.parity,
            standbys=options.standbys,
            device=settings.device,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            # CPUs without bfloat16 in hardware compute it several times slower than float32.
            dtype="float32" if settings.device == "cpu" else "auto",
        )
        online = bench_online(config, load, plan, progress=say)
    console.print(f"{settings.shape or settings.model or 'SmolLM2-135M-Instruct'}, TP {settings.tensor_parallel_size},"
                  f" parity {settings.parity}, {settings.device}: {described(online)}")  # fmt: skip
    console.print(f"{online.compared} tokens are those of undisturbed runs of the same schedules")
    for table in tables(online):
        console.print(table)
    for name, reason in online.refused.items():
        console.print(f"{name} is refused here: {reason}", markup=False, highlight=False)
    for name, reason in online.failed.items():
        console.print(f"{name} failed: {reason}", style="red", markup=False, highlight=False)
    found = as_json(online)
    if settings.plot is not None:
        from ghostserve.bench.online.picture import draw_online

        console.print(f"wrote {draw_online(found, settings.plot)}", style="dim")
    return found


def _load(settings: "BenchSettings", options: OnlineOptions) -> "Load":
    from ghostserve.bench.online.load import PROMPTS, Load

    # A small machine computes a few hundred tokens a second of a real model: a page takes it the seconds that a
    # document takes a GPU.
    usual = "medium" if settings.device == "cpu" and settings.shape is None else "long"
    wanted = options.prompt or (_QUICK.prompt if settings.quick else usual) or usual
    prompt = PROMPTS[wanted] if wanted in PROMPTS else _range("prompt", wanted, f"{', '.join(PROMPTS)} or ")
    output = options.output_tokens or (_QUICK.output_tokens if settings.quick else None)
    output = output or ("24,64" if prompt[1] >= PROMPTS["long"][0] else "8,16")
    return Load(
        requests=options.requests if options.requests is not None else (_QUICK.requests or 0) if settings.quick else 20,
        prompt=prompt,
        output=_range("output_tokens", output),
        rate=options.rate,
        trace=options.trace,
        scale_rate=options.scale_rate,
        scale_length=options.scale_length,
        seed=options.seed,
    )


def _plan(settings: "BenchSettings", options: OnlineOptions) -> "Plan":
    from ghostserve.bench.online.bench import Plan
    from ghostserve.bench.online.strategies import STRATEGIES

    strategies = options.strategies or (_QUICK.strategies if settings.quick else None) or ",".join(STRATEGIES)
    failures = options.failures if options.failures is not None else (_QUICK.failures if settings.quick else None)
    percents = "0,5,10,15" if failures is None else failures
    return Plan(
        strategies=tuple(dict.fromkeys(_words(strategies))),
        percents=tuple(dict.fromkeys(_number("failures", word) for word in _words(percents))),
        mtbf=options.mtbf,
        slo_ttft=options.slo_ttft,
        slo_per_token=options.slo_per_token,
        limit=options.time_limit,
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(name: str, word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise ConfigError(f"{name} {word!r} is no number; allowed: numbers separated by commas") from error


def _range(name: str, text: str, others: str = "") -> tuple[int, int]:
    words = _words(text)
    try:
        least, most = (int(word) for word in (words * 2 if len(words) == 1 else words))
    except ValueError:
        least, most = 0, 0
    if not 1 <= least <= most:
        raise ConfigError(f"{name} {text!r} is no length; allowed: {others}TOKENS or LEAST,MOST from 1 on")
    return least, most
