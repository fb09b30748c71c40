"""The parity store's header: what kind of store this is, of what shape, and the group's epoch.

uint64 words: magic, version, the five numbers of the geometry, epoch.
"""

from dataclasses import astuple, fields

import numpy as np
from numpy.typing import NDArray

from ghostserve.errors import StoreMismatchError
from ghostserve.parity.geometry import StoreGeometry

__all__ = ["EPOCH", "WORDS", "check_header", "write_header"]

MAGIC = int.from_bytes(b"GHOSTPAR", "little")
VERSION = 3
EPOCH = 2 + len(fields(StoreGeometry))
WORDS = EPOCH + 1


def write_header(words: NDArray[np.uint64], geometry: StoreGeometry, epoch: int) -> None:
    """Fill the header's `words`, uint64 (WORDS,)."""
    words[1:] = (VERSION, *astuple(geometry), epoch)
    # Last: a store that is not wholly set up is not a store.
    words[0] = MAGIC


def check_header(words: NDArray[np.uint64], geometry: StoreGeometry) -> None:
    """Raise `StoreMismatchError`, naming what differs, unless the header is of a store of this `geometry`."""
    magic, version, *numbers = (int(word) for word in words[:EPOCH])
    if magic != MAGIC:
        raise StoreMismatchError(f"this memory is no parity store: magic {magic:#018x}, expected {MAGIC:#018x}")
    if version != VERSION:
        raise StoreMismatchError(f"the parity store has version {version}, this build reads version {VERSION}")
    for field, found, expected in zip(fields(geometry), numbers, astuple(geometry), strict=True):
        if found != expected:
            raise StoreMismatchError(f"the parity store has {field.name} {found}, {expected} was expected")
