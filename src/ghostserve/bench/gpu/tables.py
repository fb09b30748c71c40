"""The GPU benchmarks' figures as tables: beside each one what it is held against."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from ghostserve.bench.gpu.suite import Outcome
from ghostserve.bench.gpu.timing import Spread
from ghostserve.parity.limits import format_bytes

__all__ = ["tables"]


def tables(outcome: Outcome) -> list[Table]:
    """One for each kind of figure that the benchmark has."""
    return [_TABLES[kind](figures) for kind, figures in outcome.figures.items() if figures]


def _table(title: str, *headings: str, words: int) -> Table:
    """The first `words` columns hold words, the others numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < words else "right")
    return table


def _kernels(figures: Sequence[Any]) -> Table:
    ceilings = sorted({round(f.ceiling_gbps) for f in figures})
    table = _table(
        f"kernels on a paged cache; ceiling: a copy's {' and '.join(map(str, ceilings))} GB/s read + written;"
        " aim 0.95, checksums at most 3 %",
        "cache", "code", "case", "blocks", "us", "min..max", "GB/s", "of ceiling", "without checksums", "their cost",
        "first launch s",
        words=4,
    )  # fmt: skip
    bare = {(f.shape, f.code, f.case): f for f in figures if not f.checksums}
    for f in figures:
        if not f.checksums:
            continue
        other = bare.get((f.shape, f.code, f.case)) if f.programs is None else None
        table.add_row(
            f.shape,
            f.code,
            f.case,
            "all" if f.programs is None else str(f.programs),
            *_micros(f.seconds),
            f"{f.gbps:.0f}",
            f"{f.of_ceiling:.3f}",
            f"{other.of_ceiling:.3f}" if other else "",
            f"{f.seconds.median / other.seconds.median - 1:+.1%}" if other else "",
            f"{f.compile_seconds:.1f}",
        )
    return table


def _decode_flush(figures: Sequence[Any]) -> Table:
    table = _table(
        "flush of one decode token of each sequence: device time; aim 100 us",
        "cache", "code", "sequences", "us launched", "min..max", "us from a graph", "min..max",
        words=2,
    )  # fmt: skip
    for f in figures:
        replayed = _micros(f.replayed) if f.replayed is not None else (f.graph_error or "", "")
        table.add_row(f.shape, f.code, str(f.sequences), *_micros(f.launched), *replayed)
    return table


def _checkpoint(figures: Sequence[Any]) -> Table:
    first = figures[0]
    table = _table(
        f"checkpoint of {first.tokens} tokens, {first.shape}, into registered host memory, against copying all"
        f" {first.data_shards} shards out ({first.copy_all.median * 1e3:.2f} ms, {first.copy_gbps:.1f} GB/s); with all"
        " that a flush does beside: against replicate-host",
        "code", "way", "ms", "min..max", "ms in store", "GB/s out", "faster", "than replicate-host", "limit", "aim",
        words=2,
    )  # fmt: skip
    for f in figures:
        in_store = f"{f.in_store.median * 1e3:.2f}" if f.in_store else ""
        limits = f"{f.faster:.2f}x", f"{f.faster_than_replicate:.2f}x", f"{f.limit:.0f}x", f"{f.aim}x"
        table.add_row(f.code, f.way, *_millis(f.seconds), in_store, f"{f.gbps:.1f}", *limits)
    return table


def _beside(figures: Sequence[Any]) -> Table:
    table = _table(
        "checkpoints back to back beside bf16 matrix products: how long these take, what one checkpoint costs them;"
        " how long it takes itself, and how much faster it is than copying all shards out beside them",
        "code", "way", "matmuls alone ms", "beside ms", "slow-down", "checkpoints", "ms lost to each", "ms of each",
        "faster",
        words=2,
    )  # fmt: skip
    for f in figures:
        table.add_row(
            f.code,
            f.way,
            f"{f.alone.median * 1e3:.1f}",
            f"{f.beside.median * 1e3:.1f}",
            f"{f.slow_down:.3f}",
            f"{f.checkpoints:.0f}",
            f"{f.lost_seconds * 1e3:.2f}",
            f"{f.seconds.median * 1e3:.2f}",
            f"{f.faster:.2f}x",
        )
    return table


def _rebuild(figures: Sequence[Any]) -> Table:
    table = _table(
        "rebuild from registered host memory into a paged cache, every slot verified; ceiling: the same parity bytes"
        " copied to the device; aim 0.9",
        "cache", "code", "lost", "blocks", "tokens", "GB rebuilt", "GB of parity", "ms", "min..max", "parity GB/s",
        "copy GB/s", "of copy",
        words=4,
    )  # fmt: skip
    for f in figures:
        table.add_row(
            f.shape,
            f.code,
            ", ".join(map(str, f.lost)),
            f.order,
            f"{f.tokens:,}",
            f"{f.rebuilt_bytes / 1e9:.2f}",
            f"{f.parity_bytes / 1e9:.2f}",
            *_millis(f.seconds),
            f"{f.gbps:.1f}",
            f"{f.ceiling_gbps:.1f}",
            f"{f.of_ceiling:.3f}",
        )
    return table


def _overhead(figures: Sequence[Any]) -> Table:
    table = _table(
        "one rank of a model (no all-reduces; its peers' caches are buffers on this GPU) with parity and without,"
        " in turns: time with / time without; aim 1.01",
        "model", "work", "parity", "ms without", "ms with", "ratio", "min..max", "last commit, ms after",
        words=3,
    )  # fmt: skip
    for f in figures:
        table.add_row(
            f.model,
            f.work,
            f.parity,
            f"{f.without.median * 1e3:.2f}",
            f"{f.protected.median * 1e3:.2f}",
            f"{f.ratio.median:.4f}",
            f"{f.ratio.low:.4f}..{f.ratio.high:.4f}",
            f"{f.drain.median * 1e3:.2f}",
        )
    return table


def _contexts(figures: Sequence[Any]) -> Table:
    table = _table(
        "a context on one rank: checkpoint of all shards, and the lost rank's shard brought back (ms, medians);"
        " one link for all ranks, a prefill without all-reduces",
        "model", "tokens", "code", "host memory", "copies", "checkpoint", "copy all", "faster", "limit", "rebuild",
        "copy back", "recompute", "recompute / rebuild", "other bits",
        words=1,
    )  # fmt: skip
    for f in figures:
        table.add_row(
            f.shape,
            f"{f.tokens:,}",
            f.code,
            format_bytes(f.parity_bytes),
            format_bytes(f.cache_bytes),
            *(f"{spread.median * 1e3:.2f}" for spread in (f.checkpoint, f.copy_all)),
            f"{f.faster:.2f}x",
            f"{f.limit:.0f}x",
            *(f"{spread.median * 1e3:.2f}" for spread in (f.rebuild, f.copy_back, f.recompute)),
            f"{f.against_recompute:.1f}x",
            f"{f.other_bits:.2%}",
        )
    return table


def _micros(seconds: Spread) -> tuple[str, str]:
    return _scaled(seconds.times(1e6), 1)


def _millis(seconds: Spread) -> tuple[str, str]:
    return _scaled(seconds.times(1e3), 2)


def _scaled(spread: Spread, digits: int) -> tuple[str, str]:
    return f"{spread.median:.{digits}f}", f"{spread.low:.{digits}f}..{spread.high:.{digits}f}"


_TABLES = {
    "kernels": _kernels,
    "decode_flush": _decode_flush,
    "checkpoint": _checkpoint,
    "checkpoint_beside_matmuls": _beside,
    "rebuild": _rebuild,
    "overhead": _overhead,
    "contexts": _contexts,
}
