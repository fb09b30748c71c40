"""The copy code: any data shards come back as long as their copies are there."""

from itertools import chain, combinations

import numpy as np
import pytest
from code_cases import rebuild, run, stripe

from ghostserve.codes import CopyCode, make_code
from ghostserve.codes.cpu import CpuBackend
from ghostserve.errors import TooManyLostError, UnsupportedCodeError


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_every_set_of_data_shards_comes_back(backend: CpuBackend, n: int) -> None:
    code = CopyCode(n, n)
    shards = stripe(code, 5, 96)
    data = shards[:n]
    assert all(np.array_equal(a, b) for a, b in zip(run(backend, code.encode_plan, data), shards[n:], strict=True))
    for lost in chain.from_iterable(combinations(range(n), size) for size in range(1, n + 1)):
        for shard, found in rebuild(backend, code, shards, lost).items():
            assert np.array_equal(found, data[shard])
        assert code.rebuild_plan(lost).inputs == tuple(s + n for s in lost)  # and nothing else is read


@pytest.mark.parametrize("n", [2, 4])
def test_a_shard_and_its_copy_are_too_many(n: int) -> None:
    code = CopyCode(n, n)
    for lost in chain.from_iterable(combinations(range(2 * n), size) for size in range(1, 2 * n + 1)):
        whole = all(not {s, s + n} <= set(lost) for s in range(n))
        assert code.rebuilds(lost) is whole
        if not whole:
            with pytest.raises(TooManyLostError):
                code.rebuild_plan(lost)


def test_k_is_n() -> None:
    with pytest.raises(UnsupportedCodeError, match="exactly 3 parity shards, not 2"):
        CopyCode(3, 2)
    code = make_code("copy", 3)
    assert code is not None
    assert code.k == 3
