"""Looks into the coordinator's books: what must be there, and what must not be left."""

from collections.abc import Collection

from ghostserve.engine.coordinator import Coordinator
from ghostserve.parity.ranges import singles

__all__ = ["leaks", "lost_commits"]


def lost_commits(coordinator: Coordinator) -> list[str]:
    """What was acknowledged as committed must be committed, as long as its request is protected; else a sentence."""
    serving, memory = coordinator.serving, coordinator._memory
    if serving.budget is None:
        return []
    open_ranges = [r for task in serving.ledger.outstanding for r in task.ranges]
    open_ranges += [r for pending in serving.ledger._pending.values() for r in pending.ranges]
    still_open = set(singles(open_ranges))
    sentences = []
    for state in serving.kv_states(memory.count_missing):
        if serving.budget.is_protected(state.request_id):
            lost = memory.count_missing([r for r in singles(state.ranges) if r not in still_open])
            if lost:
                sentences.append(f"{lost} committed slots of {state.request_id} are not committed any more")
    return sentences


def leaks(coordinator: Coordinator, living: Collection[int]) -> list[str]:
    """When all requests are over and all flushes acknowledged nothing may be left; `living`: workers that run."""
    serving, machine = coordinator.serving, coordinator._driver.machine
    owned = {*machine.members.values(), *machine.standbys, *machine.starting}
    budget = serving.budget
    left = {
        "requests": len(serving.scheduler.requests),
        "clients": len(coordinator._sinks),
        "blocks": serving.blocks.num_blocks - serving.blocks.num_free,
        "logged steps": len(serving.log),
        "pinned steps": len(serving.pinned),
        "waiting tokens": serving.ledger.waiting_tokens,
        "parity blocks": len(budget._places) + len(budget._cooling) if budget is not None else 0,
        "lost ranks": len(machine.lost_ranks),
        "workers": len(set(living) - owned),
    }
    return [f"leak: {count} {what} are left when all is done" for what, count in left.items() if count]
