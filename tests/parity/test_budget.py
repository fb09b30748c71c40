import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ghostserve.errors import ConfigError
from ghostserve.parity import Assignment, ParityBudget


def test_room_for_all_blocks_is_the_identity():
    budget = ParityBudget(num_parity_blocks=8, num_blocks=8)
    assert budget.assign("a", [3, 5], 30, step=0) == Assignment(protected=True, gained=True)
    assert budget.assign("a", [3, 5, 7], 40, step=1) == Assignment(protected=True)
    assert [budget.parity_block(b) for b in (3, 5, 7, 0)] == [3, 5, 7, None]
    budget.release("a", 1)
    # At once, whatever the watermark: the cache itself does not hand the block out while it is read.
    assert budget.assign("b", [3], 5, step=2).protected


def test_the_longest_contexts_are_protected():
    budget = ParityBudget(4, num_blocks=100)
    assert budget.assign("short", [10], 16, step=0).protected
    assert budget.assign("middle", [20, 21], 32, step=0).protected
    assert budget.assign("long", [30, 31], 40, step=1) == Assignment(False, pushed_out=("short",))
    assert not budget.is_protected("short")
    assert (budget.protected_tokens, budget.unprotected_tokens) == (32, 16 + 40)
    assert not budget.assign("long", [30, 31], 41, step=2).protected, "step 0 may still be flushed"
    budget.reclaim(0)
    assert budget.assign("long", [30, 31], 41, step=3) == Assignment(True, gained=True)
    assert budget.assign("short", [10], 17, step=3) == Assignment(False)
    assert (budget.protected_tokens, budget.unprotected_tokens) == (32 + 41, 17)


def test_nobody_is_pushed_out_in_vain():
    budget = ParityBudget(4, num_blocks=100)
    budget.assign("a", [1, 2], 30, step=0)
    budget.assign("b", [3], 50, step=0)
    assert budget.assign("huge", [10, 11, 12, 13], 40, step=1) == Assignment(False)
    assert budget.is_protected("a")


def test_one_that_outgrows_the_budget_gives_its_place_up():
    budget = ParityBudget(2, num_blocks=100)
    budget.assign("a", [1, 2], 32, step=0)
    assert budget.assign("a", [1, 2, 3], 33, step=1) == Assignment(False, pushed_out=("a",))
    assert budget.parity_block(1) is None
    budget.reclaim(0)
    assert budget.assign("b", [7], 3, step=2).protected


def test_a_parity_block_rests_until_its_last_flush_is_over():
    budget = ParityBudget(1, num_blocks=10)
    budget.assign("a", [1], 5, step=0)
    budget.release("a", step=4)
    assert not budget.assign("b", [2], 5, step=5).protected
    budget.reclaim(3)
    assert not budget.assign("b", [2], 6, step=6).protected
    budget.reclaim(4)
    assert budget.assign("b", [2], 7, step=7) == Assignment(True, gained=True)
    budget.reclaim(7)
    budget.release("b", step=7)
    assert budget.assign("c", [3], 1, step=8).protected, "the watermark is past it already"


def test_a_shared_prefix_is_let_go_with_its_last_holder():
    budget = ParityBudget(4, num_blocks=100)
    budget.assign("a", [1, 2], 32, step=0)
    budget.assign("b", [1, 3], 32, step=0)
    place = budget.parity_block(1)
    budget.release("a", step=0)
    assert budget.parity_block(1) == place
    assert budget.parity_block(2) is None
    budget.release("b", step=0)
    assert budget.parity_block(1) is None


def test_a_budget_of_nothing_protects_nothing():
    budget = ParityBudget(0, num_blocks=4)
    assert budget.assign("a", [0], 9, step=0) == Assignment(False)
    assert budget.unprotected_tokens == 9
    budget.release("a", 0)
    budget.release("never seen", 0)
    assert budget.unprotected_tokens == 0


@pytest.mark.parametrize("numbers", [(-1, 4), (4, 0)])
def test_impossible_budgets_are_refused(numbers):
    with pytest.raises(ConfigError):
        ParityBudget(*numbers)


class NaiveBudget(ParityBudget):
    """Counts every request anew in every step."""

    def _grow(self, claim, blocks):
        return False


class Budgets(RuleBasedStateMachine):
    """No two cache blocks share a parity block, and none that may still be written is handed out."""

    def __init__(self):
        super().__init__()
        self.budget, self.naive = ParityBudget(5, num_blocks=1000), NaiveBudget(5, num_blocks=1000)
        self.step, self.watermark, self.next_block = 0, -1, 0
        self.requests = {}
        self.resting = {}  # parity block -> last step that may write it
        self.places = {}

    def observe(self, last_step):
        live = {b for blocks in self.requests.values() for b in blocks}
        places = {b: self.budget.parity_block(b) for b in live if self.budget.parity_block(b) is not None}
        for block, place in self.places.items():
            if places.get(block) != place:
                self.resting[place] = last_step
        for block, place in places.items():
            if self.places.get(block) != place:
                assert self.resting.get(place, -1) <= self.watermark
        self.places = places

    @rule(name=st.sampled_from("abcd"), blocks=st.integers(0, 3))
    def grow(self, name, blocks):
        mine = self.requests.setdefault(name, [])
        mine += range(self.next_block, self.next_block + blocks)
        self.next_block += blocks
        tokens = 16 * len(mine)
        answer = self.budget.assign(name, mine, tokens, self.step)
        assert answer == self.naive.assign(name, mine, tokens, self.step)
        self.observe(self.step - 1)
        assert answer.protected == all(b in self.places for b in mine)
        self.step += 1

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def finish(self, data):
        name = data.draw(st.sampled_from(sorted(self.requests)))
        del self.requests[name]
        self.budget.release(name, self.step - 1)
        self.naive.release(name, self.step - 1)
        self.observe(self.step - 1)

    @rule(ahead=st.integers(0, 3))
    def commit(self, ahead):
        self.watermark = min(self.watermark + ahead, self.step - 1)
        self.budget.reclaim(self.watermark)
        self.naive.reclaim(self.watermark)

    @invariant()
    def the_short_way_leads_to_the_same(self):
        for block in range(self.next_block):
            assert self.budget.parity_block(block) == self.naive.parity_block(block)
        assert self.budget.protected_tokens == self.naive.protected_tokens
        assert self.budget.unprotected_tokens == self.naive.unprotected_tokens

    @invariant()
    def places_are_distinct(self):
        assert len(set(self.places.values())) == len(self.places) <= 5


Budgets.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBudgets = Budgets.TestCase
