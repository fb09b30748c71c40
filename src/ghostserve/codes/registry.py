"""From names in a configuration to codes and backends."""

from collections.abc import Callable

from ghostserve.codes.backend import Backend
from ghostserve.codes.base import Code
from ghostserve.codes.copies import CopyCode
from ghostserve.codes.rdp import RdpCode
from ghostserve.codes.rs import ReedSolomonCode
from ghostserve.codes.xor import XorCode
from ghostserve.errors import UnsupportedCodeError

__all__ = ["make_backend", "make_code"]

_ALLOWED = "'none', 'xor' (1 parity shard), 'rdp' (2) or 'rs:K' (K parity shards, e.g. 'rs:2')"


def make_code(spec: str, n: int) -> Code | None:
    """The code that `spec` names, over `n` data shards; None for "none".

    Specs: "xor" or "xor:1", "rdp" or "rdp:2", "rs:K", and "copy" (K = N), of which replication is made. Raises
    `UnsupportedCodeError` with the value and what is allowed for any other, and for an `n` or K that the code does
    not serve.
    """
    name, colon, count = spec.partition(":")
    if spec == "none":
        return None
    if colon and not (count.isascii() and count.isdigit()):
        raise UnsupportedCodeError(f"code {spec!r}: K must be a whole number; allowed are {_ALLOWED}")
    if spec == "copy":
        return CopyCode(n, n)
    if name == "xor":
        return XorCode(n, int(count or 1))
    if name == "rdp":
        return RdpCode(n, int(count or 2))
    if name == "rs" and colon:
        return ReedSolomonCode(n, int(count))
    if name == "rs":
        raise UnsupportedCodeError(f"code {spec!r} does not say how many parity shards: write 'rs:K', e.g. 'rs:2'")
    raise UnsupportedCodeError(f"no code {spec!r}; allowed are {_ALLOWED}")


def make_backend(name: str = "auto") -> Backend:
    """The backend called `name`; "auto" takes the first that this machine can run.

    Raises `UnsupportedCodeError` with the name and what is allowed for any other.
    """
    makers = _backends()
    if name == "auto":
        return next(iter(makers.values()))()
    if name not in makers:
        raise UnsupportedCodeError(f"no backend {name!r}; allowed are {', '.join(('auto', *makers))}")
    return makers[name]()


def _backends() -> dict[str, Callable[[], Backend]]:
    """Backends that this machine can run, best first."""
    return {"cpu": _cpu}


def _cpu() -> Backend:
    from ghostserve.codes.cpu import CpuBackend  # imports numba, which takes a second: only when used

    return CpuBackend()
