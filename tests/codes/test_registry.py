"""Names in a configuration: what they give, and the errors for the rest."""

import subprocess
import sys

import pytest

from ghostserve.codes import RdpCode, ReedSolomonCode, XorCode, make_backend, make_code
from ghostserve.errors import ConfigError, UnsupportedCodeError


@pytest.mark.parametrize(
    ("spec", "kind", "text"),
    [
        ("xor", XorCode, "xor 4:1"),
        ("xor:1", XorCode, "xor 4:1"),
        ("rdp", RdpCode, "rdp 4:2"),
        ("rdp:2", RdpCode, "rdp 4:2"),
        ("rs:3", ReedSolomonCode, "rs 4:3"),
    ],
)
def test_codes(spec, kind, text):
    code = make_code(spec, 4)
    assert type(code) is kind
    assert str(code) == text


def test_none_is_no_code():
    assert make_code("none", 4) is None


@pytest.mark.parametrize(
    ("spec", "n", "message"),
    [
        ("rs", 4, "'rs' does not say how many.*rs:K"),
        ("raid", 4, "no code 'raid'; allowed are"),
        ("", 4, "no code ''"),
        ("none:1", 4, "no code 'none:1'"),
        ("rs:x", 4, "'rs:x': K must be a whole number"),
        ("rs:-1", 4, "'rs:-1'"),
        ("rs:", 4, "'rs:'"),
        ("rs:²", 4, "whole number"),
        ("rs:0", 4, "not 4 and 0"),
        ("rs:2", 255, "at most 256 shards in all, not 255 data [+] 2 parity = 257"),
        ("xor:2", 4, "exactly 1 parity shard, not 2"),
        ("xor:0", 4, "exactly 1 parity shard, not 0"),
        ("xor", 0, "at least 1 data shard, not 0"),
        ("rdp:3", 4, "exactly 2 parity shards, not 3"),
        ("rdp", 257, r"1\.\.256 data shards, not 257"),
        ("rdp", 0, r"1\.\.256 data shards, not 0"),
    ],
)
def test_what_is_refused_is_named(spec, n, message):
    with pytest.raises(UnsupportedCodeError, match=message) as caught:
        make_code(spec, n)
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize(("n", "rows"), [(1, 4), (4, 4), (5, 16), (16, 16), (17, 256), (256, 256)])
def test_rdp_takes_the_smallest_prime_and_checks_slots(n, rows):
    code = make_code("rdp", n)
    assert code.rows == rows
    code.check_slot_bytes(2 * rows)
    for bad in (0, -rows, rows + 1):
        with pytest.raises(UnsupportedCodeError, match=f"multiple of {rows} bytes, not {bad}"):
            code.check_slot_bytes(bad)


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_backends(name):
    assert make_backend(name).name == "cpu"


def test_unknown_backend():
    with pytest.raises(UnsupportedCodeError, match="no backend 'tpu'; allowed are auto, cpu"):
        make_backend("tpu")


def test_importing_codes_does_not_import_numba():
    script = "import sys, ghostserve.codes; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
