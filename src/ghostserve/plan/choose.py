"""The choice among the outlooks, with its reasons."""

import msgspec

from ghostserve.plan.inputs import Failures, Hardware, Wishes
from ghostserve.plan.models import ModelShape
from ghostserve.plan.strategies import Outlook, outlooks, prefill_tokens_per_s

__all__ = ["Plan", "make_plan"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All outlooks, which one is recommended, and why."""

    chosen: Outlook
    reasons: tuple[str, ...]
    outlooks: tuple[Outlook, ...]
    kv_bytes_per_token: int
    prefill_tokens_per_s: float
    failures_a_year: float
    """Of one engine."""


def make_plan(model: ModelShape, hardware: Hardware, failures: Failures, wishes: Wishes) -> Plan:
    """Weigh every strategy. Pure: the same inputs give the same plan.

    `none` where nothing fails or recomputing is within `max_pause`; else, of what fits into `host_bytes` and keeps
    the pause, the one that loses least work (then the least host memory); else the shortest pause that fits.
    """
    found = outlooks(model, hardware, failures, wishes)
    chosen, reasons = _choose(found, failures, wishes)
    return Plan(
        chosen=chosen,
        reasons=reasons,
        outlooks=tuple(found),
        kv_bytes_per_token=model.kv_bytes_per_token,
        prefill_tokens_per_s=prefill_tokens_per_s(model, hardware, wishes.tensor_parallel_size),
        failures_a_year=failures.per_gpu_hour * wishes.tensor_parallel_size * 24 * 365,
    )


def _choose(found: list[Outlook], failures: Failures, wishes: Wishes) -> tuple[Outlook, tuple[str, ...]]:
    none, others = found[0], found[1:]
    if failures.per_gpu_hour == 0:
        return none, ("nothing fails: any protection would cost and save nothing",)
    if none.pause_s <= wishes.max_pause:
        return none, (
            f"computing every context again takes {none.pause_s:.2f} s with the rejoin, within {wishes.max_pause:g} s:"
            " memory for protection would buy nothing that was asked for",
        )
    why = [f"without protection a failure stops every stream for {none.pause_s:.1f} s, above {wishes.max_pause:g} s"]
    fitting = [o for o in others if o.host_bytes <= wishes.host_bytes]
    why += [
        f"{_name(o)} needs {o.host_bytes / 1e9:.1f} GB of host memory, there are {wishes.host_bytes / 1e9:.1f}"
        for o in others
        if o not in fitting
    ]
    good = [o for o in fitting if o.pause_s <= wishes.max_pause]
    why += [f"{_name(o)} pauses for {o.pause_s:.1f} s, above {wishes.max_pause:g} s" for o in fitting if o not in good]
    if good:
        best = min(good, key=lambda o: (o.lost_gpu_hours, o.host_bytes))
        why.append(
            f"{_name(best)} keeps the pause at {best.pause_s:.1f} s and loses least:"
            f" {best.lost_gpu_hours:.3f} GPU-hours a year (none: {none.lost_gpu_hours:.3f})"
        )
        return best, tuple(why)
    best = min([none, *fitting], key=lambda o: (o.pause_s, o.host_bytes))
    why.append(f"nothing that fits keeps the pause: {_name(best)} has the shortest, {best.pause_s:.1f} s")
    return best, tuple(why)


def _name(o: Outlook) -> str:
    return f"{o.strategy} K={o.parity}" if o.parity else o.strategy
