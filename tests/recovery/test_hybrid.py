"""The split between recompute and rebuild: against every other split on small cases, and on made-up machines."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostserve.recovery.hybrid import Part, Rates, split

SLOW_LINK = Rates(slot=1e-3, step=1e-3, token=2e-4, key=1e-8, alongside=1.0)


def context(name: str, *sizes: int) -> list[Part]:
    parts, at = [], 0
    for size in sizes:
        parts.append(Part(name, at, at + size))
        at += size
    return parts


def seconds(contexts: list[list[Part]], taken: tuple[int, ...], rates: Rates) -> float:
    """Of recomputing the first `taken[i]` parts of each context, straight from the definition."""
    run = [part for parts, count in zip(contexts, taken, strict=True) for part in parts[:count]]
    left = sum(p.tokens for parts, count in zip(contexts, taken, strict=True) for p in parts[count:])
    spent = sum(
        rates.step + rates.token * p.tokens + rates.key * sum(p.start + i + 1 for i in range(p.tokens)) for p in run
    )
    a, b = sorted((spent, rates.start + rates.slot * left if left else 0.0))
    return b - a + a / rates.alongside


@given(
    sizes=st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=4), min_size=1, max_size=3),
    slot=st.floats(1e-6, 1e-2),
    step=st.floats(0, 1e-2),
    token=st.floats(1e-6, 1e-2),
    key=st.floats(0, 1e-5),
    alongside=st.floats(0.3, 1.0),
    start=st.floats(0, 1e-1),
)
@settings(max_examples=150, deadline=None)
def test_it_is_never_slower_than_its_parts_and_near_the_best(
    sizes: list[list[int]], slot: float, step: float, token: float, key: float, alongside: float, start: float
) -> None:
    contexts = [context(str(i), *each) for i, each in enumerate(sizes)]
    rates = Rates(slot, step, token, key, alongside, start=start)
    found = split(contexts, rates)
    taken = tuple(sum(p.request_id == str(i) for p in found.recompute) for i in range(len(contexts)))
    # Of each request only a beginning.
    for parts, count in zip(contexts, taken, strict=True):
        assert [p for p in found.recompute if p.request_id == parts[0].request_id] == parts[:count]
    assert found.seconds == pytest.approx(seconds(contexts, taken, rates))
    assert found.rebuild_only == pytest.approx(seconds(contexts, (0,) * len(contexts), rates))
    assert found.seconds <= min(seconds(contexts, (0,) * len(contexts), rates),
                                seconds(contexts, tuple(map(len, contexts)), rates)) * (1 + 1e-9)  # fmt: skip
    every = [seconds(contexts, each, rates) for each in product(*(range(len(c) + 1) for c in contexts))]
    # One part more or less than the ideal is what whole parts cost.
    largest = max(rates.recompute(p) + rates.slot * p.tokens for c in contexts for p in c)
    assert found.seconds <= min(every) + largest / rates.alongside


def test_both_end_together_on_a_long_context() -> None:
    parts = context("a", *[64] * 100)
    found = split([parts], SLOW_LINK)
    spent = sum(SLOW_LINK.recompute(p) for p in found.recompute)
    left = SLOW_LINK.slot * 64 * (100 - len(found.recompute))
    assert abs(spent - left) < 64 * (SLOW_LINK.slot + SLOW_LINK.token) * 1.5
    assert found.seconds < 0.5 * min(found.rebuild_only, found.recompute_only * 2)
    assert "beside the rebuild of" in found.reasons[0]


def test_a_short_context_is_recomputed_outright_where_that_is_faster() -> None:
    found = split([context("a", 32)], Rates(slot=1e-3, step=1e-3, token=1e-5, key=0, alongside=0.5))
    assert found.recompute == tuple(context("a", 32))
    assert "outright" in found.reasons[0]


def test_what_a_rebuild_costs_beside_its_slots_counts() -> None:
    one, many = [context("a", 64)], [context("a", *[64] * 50)]
    rates = Rates(slot=1e-5, step=1e-3, token=5e-5, key=0, alongside=1.0, start=2e-2)
    assert split(one, rates).recompute == tuple(one[0])
    assert split(one, rates).rebuild_only == pytest.approx(2e-2 + 64e-5)
    assert split(one, Rates(slot=1e-5, step=1e-3, token=5e-5, key=0, alongside=1.0)).recompute == ()
    found = split(many, rates)  # all of it by recomputing would take 0.21 s
    assert 0 < len(found.recompute) < 50
    assert found.seconds == pytest.approx(2e-2 + 64e-5 * (50 - len(found.recompute)))


def test_the_first_parts_are_the_cheapest() -> None:
    rates = Rates(slot=1e-4, step=0, token=1e-5, key=1e-6, alongside=1.0)
    found = split([context("long", *[64] * 20), context("short", 64, 64)], rates)
    taken = list(found.recompute)
    assert taken[0].start == taken[1].start == 0
    assert {p.request_id for p in taken[:2]} == {"long", "short"}


def test_a_fast_link_rebuilds_all() -> None:
    found = split([context("a", *[256] * 16)], Rates(slot=1e-7, step=1e-2, token=1e-5, key=1e-9))
    assert found.recompute == ()
    assert "all 4096 slots rebuild in" in found.reasons[0]


@pytest.mark.parametrize(
    ("rates", "policy", "why"),
    [
        (None, "hybrid", "no rebuild and no prefill were measured"),
        (Rates(1, 0, 0, 0, accepted=0.2), "hybrid", "20% of recomputed slots had the recorded bits"),
        (SLOW_LINK, "rebuild", "was set to rebuild"),
    ],
)
def test_nothing_is_recomputed_and_the_reason_says_why(rates: Rates | None, policy: str, why: str) -> None:
    found = split([context("a", 64, 64)], rates, policy)  # type: ignore[arg-type]
    assert found.recompute == ()
    assert why in found.reasons[0]


def test_set_to_recompute_takes_every_part() -> None:
    parts = context("a", 64, 64, 1, 1)
    assert split([parts], None, "recompute").recompute == tuple(parts)
    assert split([parts], SLOW_LINK, "recompute").seconds == pytest.approx(sum(map(SLOW_LINK.recompute, parts)))


def test_keys_are_counted_exactly() -> None:
    for part in context("a", 5, 1, 13):
        assert part.keys == sum(p + 1 for p in range(part.start, part.stop))
