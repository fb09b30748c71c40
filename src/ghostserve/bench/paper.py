"""What the GhostServe paper says beside what was measured here: a pure function of a run's JSON."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["PAPER_MACHINE", "Row", "compare"]

PAPER_MACHINE = "8x H200, SGLang, TP 8, chunks of 2K tokens"
_NOT_RUN = "not run"
_ONLINE = "its own arrivals, model and load: `bench online`"

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One claim. `here` is a figure of this run or says that there is none; `differs`: what keeps them apart."""

    claim: str
    paper: str
    here: str
    differs: str


def compare(results: Figures, *, ranks: int, parity: str) -> list[Row]:
    """A row a claim; of a run on a GPU its figures, else those of engines on the CPU.

    `results`: what `ghostserve bench paper --output` writes; `ranks`, `parity`: of its strategies.
    """
    rows = []
    for claim in _CLAIMS:
        found, differs = next(claim.on_gpu(results), None), claim.gpu_differs
        if found is None:
            found, differs = next(claim.on_cpu(results), None), claim.cpu_differs
        rows.append(Row(claim.says, claim.paper, found or _NOT_RUN, differs.format(ranks=ranks, parity=parity)))
    return rows


def _longest(results: Figures) -> tuple[dict[str, Any], int]:
    """way -> its figure at the longest context."""
    figures: Sequence[Any] = results.get("strategies", {}).get("contexts", ())
    longest = max((f["context"] for f in figures), default=0)
    return {f["way"]: f for f in figures if f["context"] == longest}, longest


def _parity(ways: Mapping[str, Any], recovery: str) -> Any:
    return next((f for name, f in ways.items() if name.endswith(f", {recovery}")), None)


def _checkpoint(results: Figures) -> Iterator[str]:
    ways, context = _longest(results)
    parity, copies = _parity(ways, "rebuild"), ways.get("replicate-host")
    if parity and copies:
        faster = copies["checkpoint"]["median"] / parity["checkpoint"]["median"]
        yield f"{faster:.2f}x at {context:,} tokens"


def _recovery(results: Figures) -> Iterator[str]:
    ways, context = _longest(results)
    parity, none, copies = _parity(ways, "rebuild"), ways.get("none"), ways.get("replicate-host")
    if parity and none and copies:
        own = parity["restore"]["median"]
        yield (
            f"{none['restore']['median'] / own:.2f}x against recomputing, {copies['restore']['median'] / own:.2f}x"
            f" against copies, at {context:,} tokens"
        )


def _pause(results: Figures) -> Iterator[str]:
    ways, context = _longest(results)
    parity = _parity(ways, "rebuild")
    if parity:
        yield f"{parity['pause']['median']:.2f} s from the kill to the next token at {context:,} tokens"


def _memory(results: Figures) -> Iterator[str]:
    kept = {k["way"]: k for k in results.get("strategies", {}).get("kept", ())}
    parity, copies = _parity(kept, "rebuild"), kept.get("replicate-host")
    if parity and copies:
        yield f"{parity['host_bytes'] / copies['host_bytes'] - 1:+.0%} against copies"


def _decode(results: Figures) -> Iterator[str]:
    kept = {k["way"]: k for k in results.get("strategies", {}).get("kept", ())}
    parity = _parity(kept, "rebuild")
    if parity:
        ratio = parity["decode_ratio"]
        yield f"{1 / ratio['median'] - 1:+.1%} ({1 / ratio['high'] - 1:+.1%} to {1 / ratio['low'] - 1:+.1%})"


def _prefill(results: Figures) -> Iterator[str]:
    ways, context = _longest(results)
    parity = _parity(ways, "rebuild")
    if parity:
        ratio = parity["prefill_ratio"]
        yield f"{ratio['median'] - 1:+.1%} ({ratio['low'] - 1:+.1%} to {ratio['high'] - 1:+.1%}) at {context:,} tokens"


def _two_ranks(results: Figures) -> Iterator[str]:
    at_two = [
        f for f in results.get("sensitivity", {}).get("sensitivity", ()) if (f["axis"], f["ranks"]) == ("ranks", 2)
    ]
    ways = {f["kept"]["way"]: f for f in at_two}
    parity, copies = ways.get("rs:1"), ways.get("replicate-host")
    if parity and copies:
        faster = copies["context"]["checkpoint"]["median"] / parity["context"]["checkpoint"]["median"]
        share = parity["kept"]["host_bytes"] / parity["kept"]["cache_bytes"]
        yield f"checkpoint {faster:.2f}x, host memory {share:.2f} of the cache"


def _hybrid(results: Figures) -> Iterator[str]:
    refills = results.get("hybrid", {}).get("refills", ())
    if refills and not any(f["recomputed_slots"] for f in refills if f["policy"] == "hybrid"):
        yield "it chose the pure rebuild each time"
    times: dict[int, dict[str, float]] = {}
    for f in refills:
        times.setdefault(f["context"], {})[f["policy"]] = f["seconds"]["median"]
    gains = {context: 1 - by["hybrid"] / by["rebuild"] for context, by in times.items() if "rebuild" in by}
    if gains:
        best = max(gains, key=lambda context: gains[context])
        yield f"{gains[best]:+.1%} at best ({best:,} tokens), {min(gains.values()):+.1%} at worst"


def _online(percentile: str) -> Callable[[Figures], Iterator[str]]:
    """Latencies with a failure for 15 % of the requests: how many times lower than `none` has them."""

    def found(results: Figures) -> Iterator[str]:
        online = results.get("online", {})
        labels = {case["label"] for case in online.get("cases", ()) if case["percent"] == 15}
        latency = {f["strategy"]: f["latency"][percentile] for f in online.get("figures", ()) if f["case"] in labels}
        parity = [name for name in latency if name.startswith("parity")]
        if parity and "none" in latency:
            yield ", ".join(f"{latency['none'] / latency[name]:.2f}x ({name})" for name in parity)

    return found


def _gpu_context(results: Figures) -> Any:
    """The longest context under 8:2 of the largest model that ran."""
    figures = [f for f in results.get("contexts", {}).get("contexts", ()) if f["parity_shards"] == 2]
    return max(figures, key=lambda f: f["cache_bytes"], default=None)


def _gpu_checkpoint(results: Figures) -> Iterator[str]:
    if f := _gpu_context(results):
        yield f"{f['faster']:.2f}x ({f['code']}, {f['shape']}, {f['tokens']:,} tokens)"


def _gpu_recovery(results: Figures) -> Iterator[str]:
    if f := _gpu_context(results):
        copies = f["copy_back"]["median"] / f["rebuild"]["median"]
        yield f"{f['against_recompute']:.1f}x against recomputing, {copies:.2f}x against copies"


def _gpu_memory(results: Figures) -> Iterator[str]:
    if f := _gpu_context(results):
        yield f"{f['parity_bytes'] / f['cache_bytes'] - 1:+.0%} against copies"


def _gpu_rebuild(results: Figures) -> Iterator[str]:
    if f := _gpu_context(results):
        yield f"{f['rebuild']['median']:.3f} s for the KV alone ({f['shape']}, {f['tokens']:,} tokens)"


def _gpu_overhead(work: str) -> Callable[[Figures], Iterator[str]]:
    def found(results: Figures) -> Iterator[str]:
        figures = results.get("overhead", {}).get("overhead", ())
        ratios = [f["ratio"]["median"] for f in figures if f["work"].startswith(work) and "none" not in f["parity"]]
        if ratios:
            yield f"{min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}"

    return found


def _never(results: Figures) -> Iterator[str]:
    return iter(())


@dataclass(frozen=True)
class _Claim:
    says: str
    paper: str
    on_cpu: Callable[[Figures], Iterator[str]]
    cpu_differs: str
    on_gpu: Callable[[Figures], Iterator[str]] = _never
    gpu_differs: str = ""


_CLAIMS = (
    _Claim(
        "checkpoint against copying the cache to the host, 8:2",
        "2.7x faster",
        _checkpoint,
        "{ranks} CPU ranks, {parity}: without a link to the host a copy costs little; `bench contexts` has one",
        _gpu_checkpoint,
        "one GPU plays all ranks, over one link",
    ),
    _Claim(
        "recovery",
        "2.1x faster",
        _recovery,
        "{ranks} CPU ranks; the KV alone",
        _gpu_recovery,
        "the KV alone; recomputing without all-reduces",
    ),
    _Claim(
        "host memory, 8:2",
        "-75 %",
        _memory,
        "{parity} over {ranks} ranks: K/N by construction",
        _gpu_memory,
        "K/N by construction",
    ),
    _Claim(
        "Llama-3-70B, 64K tokens: recovery",
        "< 5 s",
        _pause,
        "a small model on CPU, with a standby",
        _gpu_rebuild,
        "without the newcomer's start and the process group",
    ),
    _Claim(
        "decode slows by",
        "< 10 %",
        _decode,
        "{parity}; the ranks share the machine's cores",
        _gpu_overhead("decode"),
        "one rank, no all-reduces",
    ),
    _Claim(
        "prefill of 1M tokens slows by",
        "< 6 %",
        _prefill,
        "{parity}; far shorter contexts",
        _gpu_overhead("prefill"),
        "64K tokens; one rank, no all-reduces",
    ),
    _Claim("TP 2", "no gain", _two_ranks, "random weights, rs:1; against replicate-host"),
    _Claim(
        "hybrid recovery against pure rebuild",
        "up to 42.9 % faster",
        _hybrid,
        "recomputing and the rebuild share the cores, and recomputing is slow here",
    ),
    _Claim("15 % of requests hit, P50 against recomputing", "1.2x better", _online("p50"), _ONLINE),
    _Claim("15 % of requests hit, P99 against recomputing", "1.1x better", _online("p99"), _ONLINE),
)
