"""`rs` writes the bytes that ISA-L writes."""

from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from code_cases import random_shards, run

from ghostserve.codes import ReedSolomonCode
from ghostserve.codes import isal as isal_module
from ghostserve.codes.isal import Isal
from ghostserve.errors import GhostServeError


@pytest.fixture(scope="module")
def isal():
    return Isal()


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 3), (8, 2), (8, 4), (16, 4), (60, 4), (200, 56)])
def test_matrix_and_parity_are_those_of_isal(backend, isal, n, k):
    code = ReedSolomonCode(n, k)
    matrix = isal.cauchy(n, k)
    assert np.array_equal(matrix[:n], np.eye(n, dtype=np.uint8))
    assert matrix[n:].tolist() == [code.parity_row(shard) for shard in range(n, n + k)]

    data = random_shards(n, 2, 321)
    theirs = [np.zeros_like(data[0]) for _ in range(k)]
    isal.prepare(matrix[n:], data, theirs)()
    assert all(map(np.array_equal, run(backend, code.encode_plan, data), theirs))


def test_without_pyeclib_the_error_says_what_to_install(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(isal_module, "files", missing)
    with pytest.raises(GhostServeError, match="pip install pyeclib"):
        Isal()
    monkeypatch.setattr(isal_module, "files", lambda name: [])
    with pytest.raises(GhostServeError, match="carries no libisal"):
        Isal()


def test_shards_with_gaps_are_refused(isal):
    gaps = np.zeros((2, 20), np.uint8)[:, :10]
    with pytest.raises(GhostServeError, match="contiguous"):
        isal.prepare(np.ones((1, 1), np.uint8), [gaps], [gaps])
