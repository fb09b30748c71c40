"""A copy of every shard in host memory, as DejaVu keeps it (Strati et al., ICML 2024): N/N of the cache, any loss.

DejaVu streams each worker's KV to its host. Here every rank copies a part of each chunk's slots, all shards of it, so
that all ranks and all links work at once and a slot still has one writer, whose commit covers all its copies.
"""

from ghostserve.checkpoint.ledger import EncoderPolicy
from ghostserve.codes import Code, CopyCode
from ghostserve.parity.geometry import StoreGeometry
from ghostserve.parity.store import ParityStore
from ghostserve.protect.base import Kept, Strategy

__all__ = ["ReplicateHost"]


class ReplicateHost(Strategy):
    name = "replicate-host"

    def __init__(self, parity: str) -> None:
        return  # no code to choose

    def code(self, num_shards: int) -> Code | None:
        return CopyCode(num_shards, num_shards)

    def encoder(self, wanted: EncoderPolicy) -> EncoderPolicy:
        return "striped"

    def kept(self, geometry: StoreGeometry) -> Kept:
        return Kept(host=ParityStore.region_bytes(geometry), disk=0)

    def create(self, geometry: StoreGeometry, folder: str) -> ParityStore:
        return ParityStore.create(geometry)

    def attach(self, fds: tuple[int, ...], geometry: StoreGeometry) -> ParityStore:
        (fd,) = fds
        return ParityStore.attach(fd, geometry)
