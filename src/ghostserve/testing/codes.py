"""What every erasure code promises, as tests to inherit."""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from itertools import combinations
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from ghostserve.codes import Backend, Code, Plan, make_backend
from ghostserve.errors import TooManyLostError, UnsupportedCodeError

__all__ = ["CodeConformance"]

Bytes = NDArray[np.uint8]

_POISONS = (0xA5, 0x5A)
_WHOLE = 12
"""Up to this many shards every pattern of losses is tried, beyond it `_SAMPLE` of them, drawn from a fixed seed."""
_SAMPLE = 60
_ODD_SYMBOLS = (1, 2, 3, 7, 31, 33, 63, 65, 127, 257)


class CodeConformance(ABC):
    """Subclass it as `class TestMyCode(CodeConformance)`, give `make_code`, and the class variables where they differ.

    `shapes`: (N, K) that the code serves and that are tried; up to 12 shards in all, every loss of every shape is.
    `refused`: (N, K) that it does not serve.
    """

    shapes: ClassVar[Sequence[tuple[int, int]]]
    refused: ClassVar[Sequence[tuple[int, int]]] = ((0, 1), (1, 0))

    @abstractmethod
    def make_code(self, n: int, k: int) -> Code:
        """The code over `n` data and `k` parity shards; raises what its constructor raises."""

    def make_backend(self) -> Backend:
        """What runs the plans; by default the best of this machine."""
        return make_backend()

    def definition(self, code: Code, data: Sequence[Bytes]) -> Sequence[Bytes] | None:
        """The K parity shards of N data shards, all uint8 (S, B), straight from the code's definition: an oracle that
        knows no plans. None where there is none: then nothing says that another code's parity would be wrong.
        """
        return None

    def survives(self, code: Code, lost: Collection[int]) -> bool:
        """Must the code bring back this set of shards? By default any K."""
        return len(lost) <= code.k

    def test_a_served_shape_has_no_reason_against_it(self) -> None:
        for n, k in self.shapes:
            code = self.make_code(n, k)
            assert (code.n, code.k) == (n, k), f"asked for {n}:{k}, got {code.n}:{code.k}"
            assert type(code).supports(n, k) is None, f"{code} was made, yet it says that it is not supported"
            assert str(code) == f"{code.name} {n}:{k}", f"the code of {n}:{k} calls itself {str(code)!r}"

    def test_a_shape_that_is_not_served_is_refused_with_its_number(self) -> None:
        kind = type(self.make_code(*self.shapes[0]))
        for n, k in self.refused:
            reason = kind.supports(n, k)
            assert reason is not None, f"{n}:{k} should not be supported"
            assert {str(n), str(k)} & set(re.findall(r"\d+", reason)), f"{reason!r} names neither {n} nor {k}"
            with pytest.raises(UnsupportedCodeError) as error:
                self.make_code(n, k)
            assert reason in str(error.value), f"{error.value} does not say {reason!r}"

    def test_encoding_reads_the_data_and_writes_the_parity(self) -> None:
        for code in self._codes():
            plan = code.encode_plan
            assert plan.inputs == tuple(range(code.n)), f"{code} encodes from {plan.inputs}"
            assert plan.outputs == tuple(range(code.n, code.n + code.k)), f"{code} encodes to {plan.outputs}"

    def test_plans_can_be_run_from_top_to_bottom(self) -> None:
        """A step reads what was given or what an earlier step wrote, and never an erased shard."""
        for code in self._codes():
            _check_steps(code, code.encode_plan, lost=code.encode_plan.outputs)
            for lost in self._losses(code):
                if self.survives(code, lost):
                    _check_steps(code, code.rebuild_plan(lost), lost)

    def test_parity_is_what_the_definition_says(self) -> None:
        for code in self._codes():
            data = _random(code.n, slots=2, slot_bytes=6 * code.rows)
            expected = self.definition(code, data)
            if expected is None:
                pytest.skip("no definition was given")
            for shard, ours, right in zip(code.encode_plan.outputs, self._encode(code, data), expected, strict=True):
                assert np.array_equal(ours, right), f"{code}: parity shard {shard} is not what the definition gives"

    def test_every_loss_comes_back_bit_for_bit(self) -> None:
        """All of a loss, and each part of it that can be asked for."""
        for code in self._codes():
            shards = self._stripe(code, slots=2, slot_bytes=2 * code.rows)
            for lost in self._losses(code):
                if self.survives(code, lost):
                    for wanted in _parts(lost):
                        self._check_rebuild(code, shards, lost, wanted)

    def test_what_was_asked_for_comes_first_and_ascending(self) -> None:
        for code in self._codes():
            for lost in self._losses(code):
                if self.survives(code, lost):
                    for wanted in _parts(lost):
                        found = code.rebuild_plan(lost, wanted).outputs[: len(wanted)]
                        assert found == wanted, f"{code} lost {lost}: asked for {wanted}, the plan gives {found} first"

    def test_odd_sizes(self) -> None:
        for code in self._codes():
            lost = next((some for some in self._losses(code, most=code.k) if self.survives(code, some)), ())
            for slots, symbol in zip((1, 2, 3) * len(_ODD_SYMBOLS), _ODD_SYMBOLS, strict=False):
                shards = self._stripe(code, slots, symbol * code.rows)
                self._check_rebuild(code, shards, lost, lost)

    def test_what_an_output_held_before_does_not_matter(self) -> None:
        for code in self._codes():
            data = _random(code.n, slots=2, slot_bytes=1000 * code.rows)  # long ones: they are not computed in a copy
            first, second = (self._run(code.encode_plan, data, poison) for poison in _POISONS)
            again = self._run(code.encode_plan, data, _POISONS[0])
            for shard, one, two, three in zip(code.encode_plan.outputs, first, second, again, strict=True):
                same = np.array_equal(one, two) and np.array_equal(one, three)
                assert same, f"{code}: shard {shard} depends on what its memory held"

    def test_equal_codes_give_equal_plans(self) -> None:
        """Each process makes its own: what one encodes another one rebuilds."""
        for n, k in self.shapes:
            code, other = self.make_code(n, k), self.make_code(n, k)
            assert code.encode_plan == other.encode_plan, f"two codes {code} encode differently"
            for lost in self._losses(code, most=k):
                if self.survives(code, lost):
                    plan = code.rebuild_plan(lost)
                    assert other.rebuild_plan((*reversed(lost), lost[0])) == plan, (
                        f"{code} lost {lost}: the plan depends on the order, or on who made it"
                    )

    def test_nothing_lost_is_an_empty_plan(self) -> None:
        for code in self._codes():
            for lost in ((), (0,)):
                plan = code.rebuild_plan(lost, ())
                parts = plan.inputs, plan.outputs, plan.steps
                assert parts == ((), (), ()), f"{code} lost {lost}, nothing wanted: {plan}"

    def test_it_says_which_losses_it_rebuilds(self) -> None:
        for code in self._codes():
            for lost in self._losses(code):
                must = self.survives(code, lost)
                assert code.rebuilds(lost) == must, f"{code}.rebuilds({lost}) is {not must}"

    def test_too_many_lost_are_refused_with_their_numbers(self) -> None:
        for code in self._codes():
            for lost in self._losses(code):
                if not self.survives(code, lost):
                    with pytest.raises(TooManyLostError) as error:
                        code.rebuild_plan(lost)
                    told = error.value.lost, error.value.parity
                    assert told == (lost, code.k), f"{code} lost {lost}: the error tells of {told}"

    def test_shards_that_do_not_exist_are_refused_with_the_ids_that_do(self) -> None:
        for code in self._codes():
            total = code.n + code.k
            asked: tuple[tuple[tuple[int, ...], tuple[int, ...] | None], ...] = (
                ((total,), None), ((-1,), None), ((0,), (total - 1,)),
            )  # fmt: skip
            for lost, wanted in asked:
                with pytest.raises(UnsupportedCodeError, match=rf"0\.\.{total - 1}\b"):
                    code.rebuild_plan(lost, wanted)

    def test_slots_that_can_not_be_cut_into_rows_are_refused_with_the_number(self) -> None:
        for code in self._codes():
            code.check_slot_bytes(code.rows)
            code.check_slot_bytes(3 * code.rows)
            for bad in {0, -code.rows, code.rows + 1} - {2}:  # 2 bytes are fine for one row
                with pytest.raises(UnsupportedCodeError, match=rf"{bad}\b"):
                    code.check_slot_bytes(bad)

    def _codes(self) -> Iterator[Code]:
        return (self.make_code(n, k) for n, k in self.shapes)

    def _losses(self, code: Code, most: int | None = None) -> Iterator[tuple[int, ...]]:
        """Sets of 1..most lost shards, by default up to one more than any code can bring back."""
        total, most = code.n + code.k, code.k + 1 if most is None else most
        if total <= _WHOLE:
            for size in range(1, most + 1):
                yield from combinations(range(total), size)
            return
        rng = np.random.default_rng(total)
        for _ in range(_SAMPLE):
            size = int(rng.integers(1, most + 1))
            yield tuple(sorted(rng.choice(total, size, replace=False).tolist()))

    def _run(self, plan: Plan, inputs: Sequence[Bytes], poison: int = _POISONS[0]) -> list[Bytes]:
        shape = inputs[0].shape if inputs else (1, plan.rows)
        outputs = [np.full(shape, poison, np.uint8) for _ in plan.outputs]
        self.make_backend().run(plan, inputs, outputs)
        return outputs

    def _encode(self, code: Code, data: Sequence[Bytes]) -> list[Bytes]:
        return self._run(code.encode_plan, data)

    def _stripe(self, code: Code, slots: int, slot_bytes: int) -> list[Bytes]:
        data = _random(code.n, slots, slot_bytes)
        return [*data, *self._encode(code, data)]

    def _check_rebuild(self, code: Code, shards: list[Bytes], lost: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        left = [np.full_like(s, _POISONS[1]) if i in lost else s.copy() for i, s in enumerate(shards)]
        plan = code.rebuild_plan(lost, wanted)
        assert set(wanted) <= set(plan.outputs), f"{code} lost {lost}: asked for {wanted}, got {plan.outputs}"
        for shard, found in zip(plan.outputs, self._run(plan, [left[i] for i in plan.inputs]), strict=True):
            right = np.array_equal(found, shards[shard])
            assert right, f"{code} lost {lost}, asked for {wanted}, {found.shape}: shard {shard} came back wrong"


def _random(count: int, slots: int, slot_bytes: int) -> list[Bytes]:
    rng = np.random.default_rng((count, slots, slot_bytes))
    return list(rng.integers(0, 256, (count, slots, slot_bytes), dtype=np.uint8))


def _parts(lost: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every part of a small loss, of a large one the whole and each shard alone."""
    sizes = range(1, len(lost) + 1) if len(lost) <= 4 else (1, len(lost))
    for size in sizes:
        yield from combinations(lost, size)


def _check_steps(code: Code, plan: Plan, lost: Collection[int]) -> None:
    case = f"{code} lost {tuple(lost)}"
    assert plan.rows == code.rows, f"{case}: the plan has {plan.rows} rows, the code {code.rows}"
    assert not set(plan.inputs) & set(lost), f"{case}: the plan reads {plan.inputs}"
    assert set(plan.outputs) <= set(lost), f"{case}: the plan overwrites shards that are there: {plan.outputs}"
    assert len({*plan.inputs, *plan.outputs}) == len(plan.inputs) + len(plan.outputs), f"{case}: a shard comes twice"
    known = set(range(len(plan.inputs) * plan.rows))
    outputs = set(range(len(known), (len(plan.inputs) + len(plan.outputs)) * plan.rows))
    for at, step in enumerate(plan.steps):
        assert step.target in outputs, f"{case}: step {at} writes symbol {step.target}, which is no output"
        unknown = [source for source, _ in step.terms if source not in known]
        assert not unknown, f"{case}: step {at} reads symbols {unknown} before they are written"
        wrong = [c for _, c in step.terms if not 1 <= c <= 255]
        assert not wrong, f"{case}: step {at} has coefficients {wrong}, allowed are 1..255"
        known.add(step.target)
    assert outputs <= known, f"{case}: symbols {sorted(outputs - known)} are never written"
