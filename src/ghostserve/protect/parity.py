"""Erasure-coded parity in host memory: K/N of the cache, any K ranks at once."""

from ghostserve.codes import Code, make_code
from ghostserve.errors import ConfigError
from ghostserve.parity.geometry import StoreGeometry
from ghostserve.parity.store import ParityStore
from ghostserve.protect.base import Kept, Strategy

__all__ = ["Parity"]


class Parity(Strategy):
    name = "parity"

    def __init__(self, parity: str) -> None:
        if parity in ("none", "copy"):
            raise ConfigError(f"protect 'parity' needs a code, not parity {parity!r}; allowed: xor, rdp, rs:K")
        self._spec = parity

    def code(self, num_shards: int) -> Code | None:
        return make_code(self._spec, num_shards)

    def kept(self, geometry: StoreGeometry) -> Kept:
        return Kept(host=ParityStore.region_bytes(geometry), disk=0)

    def create(self, geometry: StoreGeometry, folder: str) -> ParityStore:
        return ParityStore.create(geometry)

    def attach(self, fds: tuple[int, ...], geometry: StoreGeometry) -> ParityStore:
        (fd,) = fds
        return ParityStore.attach(fd, geometry)
