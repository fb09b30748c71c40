"""The field against galois, and its own laws."""

import galois
import numpy as np
import pytest

from ghostserve.codes import gf256
from ghostserve.errors import UnsupportedCodeError


@pytest.fixture(scope="module")
def field() -> type[galois.FieldArray]:
    return galois.GF(2**8, irreducible_poly=gf256.POLYNOMIAL)


def test_all_products_are_those_of_galois(field):
    a, b = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    assert np.array_equal(np.asarray(field(a) * field(b)), gf256.mul_table())


def test_inverses_are_those_of_galois(field):
    expected = np.asarray(field(1) / field(np.arange(1, 256)))
    assert [gf256.inv(a) for a in range(1, 256)] == expected.tolist()


def test_zero_has_no_inverse():
    with pytest.raises(ZeroDivisionError, match="0 has no inverse"):
        gf256.inv(0)


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_matrix_inverse_is_that_of_galois(field, size):
    rng = np.random.default_rng(size)
    while True:
        matrix = rng.integers(0, 256, (size, size))
        if np.linalg.matrix_rank(field(matrix)) == size:
            break
    assert gf256.invert_matrix(matrix.tolist()) == np.asarray(np.linalg.inv(field(matrix))).tolist()


def test_matrix_inverse_swaps_rows_where_the_pivot_is_zero():
    assert gf256.invert_matrix([[0, 1], [2, 0]]) == [[0, gf256.inv(2)], [1, 0]]


@pytest.mark.parametrize("matrix", [[[0]], [[1, 1], [1, 1]], [[1, 2], [2, 4]]])
def test_singular_matrix_is_refused(matrix):
    with pytest.raises(UnsupportedCodeError, match="singular"):
        gf256.invert_matrix(matrix)


def test_table_can_not_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        gf256.mul_table()[0, 0] = 1
