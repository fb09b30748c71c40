"""What a recovery does with each request: a pure decision that carries its reasons."""

from collections.abc import Sequence
from dataclasses import dataclass

from ghostserve.parity.geometry import ShardMap
from ghostserve.parity.ranges import SlotRange, num_slots
from ghostserve.recovery.hybrid import Part

__all__ = ["KVState", "RecoveryPlan", "plan_recovery"]


@dataclass(frozen=True)
class KVState:
    """The KV of one request as of the watermark.

    `ranges` are the slots that the steps up to the watermark wrote; `missing` counts those of them that have
    no committed parity (never protected for want of host memory, or lost with the store). `parts` are the steps' shares
    of it, in the order of its tokens.
    """

    request_id: str
    ranges: tuple[SlotRange, ...]
    missing: int
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class RecoveryPlan:
    """`rebuild`: slots to copy or decode, then the steps of `replay` again; `recompute`: request -> why.

    `start_over`: nothing can be rebuilt, the step log is worthless and every request is recomputed.
    """

    rebuild: tuple[SlotRange, ...]
    replay: tuple[int, ...]
    recompute: dict[str, str]
    reasons: tuple[str, ...]
    start_over: bool = False


def plan_recovery(
    requests: Sequence[KVState],
    *,
    steps_after_watermark: Sequence[int],
    lost_ranks: Sequence[int],
    shard_map: ShardMap,
    parity: int,
) -> RecoveryPlan:
    """Decide for each request whether its KV is rebuilt or recomputed from tokens.

    Up to `parity` lost data shards are rebuilt (a shard with a live replica is not lost, it is copied); beyond that
    there is nothing to rebuild from, and every request that had KV is recomputed.
    """
    steps = tuple(steps_after_watermark)
    lost = shard_map.lost_shards(lost_ranks)
    if not lost_ranks:
        return RecoveryPlan((), steps, {}, ("no rank lost its KV: nothing to rebuild",))
    if len(lost) > parity:
        reason = f"{len(lost)} data shards are lost, parity covers {parity}"
        return RecoveryPlan((), (), {r.request_id: reason for r in requests}, (reason,), start_over=True)
    rebuild: list[SlotRange] = []
    recompute: dict[str, str] = {}
    for request in requests:
        if request.missing:  # a copy from a replica needs the recorded checksums as well
            recompute[request.request_id] = f"{request.missing} of its {num_slots(request.ranges)} slots have no parity"
        else:
            rebuild += request.ranges
    how = f"decoded from {shard_map.num_shards - len(lost)} survivors and parity" if lost else "copied from replicas"
    reasons = [
        f"{num_slots(rebuild)} slots of ranks {list(lost_ranks)} are {how}",
        f"{len(steps)} steps are replayed",
    ]
    return RecoveryPlan(tuple(rebuild), steps, recompute, tuple(reasons + sorted(set(recompute.values()))))
