"""The slot checksum: equal to its reference, and it sees what changed."""

import numpy as np
import pytest
from code_cases import random_shards
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ghostserve.codes import checksum_reference
from ghostserve.codes.checksum import SEED, weights
from ghostserve.errors import UnsupportedCodeError


@pytest.mark.parametrize("slot_bytes", [*range(1, 40), 255, 256, 1023, 4096])
def test_equal_to_the_reference(backend, slot_bytes):
    data = random_shards(1, 4, slot_bytes)[0]
    assert np.array_equal(backend.checksums(data), checksum_reference(data))


def test_unaligned_strided_views(backend):
    wide = random_shards(1, 9, 333)[0]
    view = wide[::-3, 5:300]
    assert np.array_equal(backend.checksums(view), checksum_reference(view))


def test_the_formula_by_hand():
    m = [int(x) for x in weights(6)]
    data = np.array([[1, 2, 3, 4, 5, 6]], np.uint8)
    expected = (SEED + m[0] * 0x04030201 + m[1] * 0x0605) % 2**64
    assert checksum_reference(data).tolist() == [expected]


def test_weights_are_the_upper_halves_of_the_published_splitmix64():
    assert int(weights(4)[0]) == 0xE220A8397B1DCDAF >> 32


def test_weights_are_odd_and_all_different():
    m = weights(65536)
    assert np.all(m & np.uint64(1))
    assert len(set(m.tolist())) == len(m)


def test_zeros_have_a_checksum_that_is_not_zero(backend):
    assert backend.checksums(np.zeros((2, 100), np.uint8)).tolist() == [SEED, SEED]


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_single_flipped_byte_is_seen(backend, flip):
    slot = random_shards(1, 1, 1027)[0]
    flipped = np.repeat(slot, slot.size, axis=0)
    np.fill_diagonal(flipped, np.diagonal(flipped) ^ flip)
    assert np.all(backend.checksums(flipped) != backend.checksums(slot)[0])


def test_every_flipped_bit_is_seen(backend):
    slot = random_shards(1, 1, 130)[0]
    bits = np.eye(8 * 130, dtype=np.uint8)
    flipped = slot ^ np.packbits(bits, axis=1)
    assert np.all(backend.checksums(flipped) != backend.checksums(slot)[0])


def test_swapped_words_are_seen(backend):
    slot = np.arange(64, dtype=np.uint32).view(np.uint8).reshape(1, 256)
    swapped = slot.copy()
    swapped[0, :4], swapped[0, 4:8] = slot[0, 4:8], slot[0, :4]
    assert backend.checksums(slot)[0] != backend.checksums(swapped)[0]


@given(st.binary(min_size=1, max_size=300))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(backend, raw):
    data = np.frombuffer(raw, np.uint8).reshape(1, -1)
    assert np.array_equal(backend.checksums(data), checksum_reference(data))


@pytest.mark.parametrize("data", [np.zeros(8, np.uint8), np.zeros((1, 8), np.int8), np.zeros((2, 8), np.uint8)[:, ::2]])
def test_other_arrays_are_refused(backend, data):
    with pytest.raises(UnsupportedCodeError, match="must be"):
        backend.checksums(data)
