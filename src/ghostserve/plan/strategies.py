"""What each way of protection costs and saves, by the formulas of docs/planning.md."""

import msgspec

from ghostserve.plan.inputs import Failures, Hardware, Wishes
from ghostserve.plan.models import ModelShape

__all__ = ["Outlook", "outlooks", "prefill_tokens_per_s"]

_HOURS = 24 * 365


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """One strategy on one engine: bytes, seconds, a part of the engine's time, and GPU-hours a year."""

    strategy: str
    parity: int
    host_bytes: int
    disk_bytes: int
    overhead: float
    pause_s: float
    """After the loss of one GPU, until every context is whole again."""
    lost_gpu_hours: float
    """A year, for one engine: pauses of all its failures, and the overhead."""


def prefill_tokens_per_s(model: ModelShape, hardware: Hardware, ranks: int) -> float:
    """2 FLOPs a weight and token; attention's own part, which grows with the context, is left out."""
    return ranks * hardware.tflops * 1e12 * hardware.mfu / (2 * model.parameters)


def outlooks(model: ModelShape, hardware: Hardware, failures: Failures, wishes: Wishes) -> list[Outlook]:
    """All strategies; `none` is the first, parity comes with each K up to `max_parity` (below N)."""
    n = wishes.tensor_parallel_size
    tokens = wishes.context * wishes.sequences
    cache = tokens * model.kv_bytes_per_token
    rate = prefill_tokens_per_s(model, hardware, n)
    link, ssd = hardware.link_gbps * 1e9, hardware.ssd_gbps * 1e9
    shard = cache / n
    fixed = hardware.detect_s + hardware.rejoin_s
    recompute = tokens / rate

    def outlook(name: str, k: int, host: float, disk: float, one: float, two: float, busy: float) -> Outlook:
        """`one`, `two`: seconds to restore that many lost GPUs; `busy`: what prefill asks of the way out, 1 = all."""
        overhead = 0.0 if name == "none" else wishes.overhead + max(0.0, busy - 1.0)
        gpu, pair = failures.gpu_share * (1 - failures.multi_share), failures.gpu_share * failures.multi_share
        # With the host its memory and disk cache are gone: every strategy computes again.
        seconds = fixed + gpu * one + pair * two + (1 - failures.gpu_share) * recompute
        lost = n * (failures.per_gpu_hour * n * _HOURS * seconds / 3600 + overhead * _HOURS)
        return Outlook(
            strategy=name,
            parity=k,
            host_bytes=round(host),
            disk_bytes=round(disk),
            overhead=overhead,
            pause_s=fixed + one,
            lost_gpu_hours=lost,
        )

    out = rate * model.kv_bytes_per_token  # bytes a second that a prefill makes, on all ranks
    found = [outlook("none", 0, 0, 0, recompute, recompute, 0)]
    # Two lost shards come over two links, or from the one disk.
    found.append(outlook("replicate-host", 0, cache, 0, shard / link, shard / link, out / (n * link)))
    found.append(outlook("replicate-ssd", 0, 0, cache, shard / ssd, 2 * shard / ssd, out / ssd))
    for k in range(1, min(wishes.max_parity, n - 1) + 1):
        busy, host = out * k / n / (n * link), cache * k / n
        rebuild = shard / link
        # Over one link: one parity shard for each lost one.
        both = 2 * rebuild if k > 1 else recompute
        found.append(outlook("parity", k, host, 0, rebuild, both, busy))

        def hybrid(seconds: float) -> float:
            """Recomputes the first part of each context while the rest is rebuilt; both end together."""
            return 1 / (1 / seconds + 1 / recompute)

        found.append(outlook("hybrid", k, host, 0, hybrid(rebuild), hybrid(both) if k > 1 else recompute, busy))
    return found
