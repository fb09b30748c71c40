"""Nothing is kept: what a lost rank held is recomputed from the tokens."""

from ghostserve.codes import Code
from ghostserve.parity.geometry import StoreGeometry
from ghostserve.parity.store import ParityStore
from ghostserve.protect.base import Kept, Strategy

__all__ = ["Unprotected"]


class Unprotected(Strategy):
    name = "none"

    def __init__(self, parity: str) -> None:
        return  # no code to choose

    def code(self, num_shards: int) -> Code | None:
        return None

    def kept(self, geometry: StoreGeometry) -> Kept:
        return Kept(host=0, disk=0)

    def create(self, geometry: StoreGeometry, folder: str) -> ParityStore:
        raise AssertionError("without a code there is no geometry to make a store of")

    def attach(self, fds: tuple[int, ...], geometry: StoreGeometry) -> ParityStore:
        raise AssertionError("without a code there is no store to attach")
