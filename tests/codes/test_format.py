"""Golden hashes: what was stored must mean the same as long as the store's version is the same.

Version 2 of the store has 32-bit weights in its checksums, version 3 has rdp's symbols in stripes: other bytes than
before where a symbol is longer than a stripe.
"""

import hashlib

import numpy as np
import pytest
from code_cases import run

from ghostserve.codes import checksum_reference, make_backend, make_code

GOLDEN = {
    ("xor", 3): "f8d118a6f1302d4e7a2e6ab0b767b1df91ddc75721c33a905fef0ed488a19e73",
    ("rdp", 4): "85f2d3dbfafca2af50fa520085e9f5ae1f929b6e78617d33cd474ffb9c5921e4",
    ("rdp", 8): "5ae34ad36961a0936af0ade54cf3dca77015f267e4bfcaff8f5885014ed26f6a",
    ("rdp", 17): "b6cdec714dd54af983f4b4687748317217f2d146e67a1aa919fdd38d7770dd1c",
    ("rs:1", 8): "8cc138bb363d04678121afcabfbafa6c96a1f8a1458d8a722d08c296f34fdd73",
    ("rs:2", 8): "0f052667eb1f0a825acf7d0f90e03aff9e81e32e9f8fdbb85ac735398c1aad05",
    ("rs:4", 16): "e360898b8a45b635114e45e1d55f03e4e0376f3e66f520038ead486534806b39",
}
STRIPED = {
    ("rdp", 4, 2048): "a987b1c189b88dc338038aad932a35844c677168a992313a66e84a3f77709d4e",
    ("rdp", 8, 15360): "f9d49a7eeb2f2e1883763943df6bcf8c983bedc3a3f7654a0aac79fa45f3a9df",
    ("rdp", 17, 65536): "5bca9679e37ee073713ff881cc6c766162fe190facdbd6ac94560eb6578d899b",
}
CHECKSUMS = "47c2837970d21708292d7ffa0150f241d13edd5f079a0960e55b7bd5eee0a6ec"


def counted(count, slots, slot_bytes):
    """Bytes that need no random generator: the low bytes of 0, 1, 4, 9, ... divided by 7."""
    numbers = np.arange(count * slots * slot_bytes, dtype=np.uint64)
    return list((numbers * numbers // 7).astype(np.uint8).reshape(count, slots, slot_bytes))


@pytest.mark.parametrize(("spec", "n"), GOLDEN)
def test_parity_is_what_it_always_was(backend, spec, n):
    parity = run(backend, make_code(spec, n).encode_plan, counted(n, 2, 512))
    assert hashlib.sha256(b"".join(p.tobytes() for p in parity)).hexdigest() == GOLDEN[spec, n]


@pytest.mark.parametrize(("spec", "n", "slot_bytes"), STRIPED)
def test_stripes_are_where_they_always_were(backend, spec, n, slot_bytes):
    parity = run(backend, make_code(spec, n).encode_plan, counted(n, 2, slot_bytes))
    assert hashlib.sha256(b"".join(p.tobytes() for p in parity)).hexdigest() == STRIPED[spec, n, slot_bytes]


def test_a_diagonal_is_where_the_paper_has_it():
    """Byte by byte, by hand: p = 5, 4 rows, three stretches of stripes of 64 bytes."""
    data = counted(4, 1, 768)
    parity = run(make_backend("cpu"), make_code("rdp", 4).encode_plan, data)
    columns = [shard[0].tolist() for shard in (*data, parity[0])]
    for at in range(768):
        stretch, row, byte = at // 256, at % 256 // 64, at % 64
        total = 0
        for column, shard in enumerate(columns):
            other = (row - column) % 5
            if other < 4:
                total ^= shard[stretch * 256 + other * 64 + byte]
        assert parity[1][0, at] == total, at


def test_checksums_are_what_they_always_were(backend):
    data = counted(1, 3, 509)[0]
    for sums in (backend.checksums(data), checksum_reference(data)):
        assert hashlib.sha256(sums.astype("<u8").tobytes()).hexdigest() == CHECKSUMS
