"""A copy of every shard on a disk, as PCcheck writes checkpoints (Strati et al., ASPLOS 2025).

PCcheck's order: stage, write beside the running model, make it durable, only then call it a checkpoint. Here a flush is
staged in the flushing rank's buffer and written while the model runs on; one fdatasync a flush, then its slots are
committed. Records stay in host memory. All ranks write at once, as in `replicate-host`.
"""

from ghostserve.checkpoint.ledger import EncoderPolicy
from ghostserve.codes import Code, CopyCode
from ghostserve.parity.file_store import FileStore
from ghostserve.parity.geometry import StoreGeometry
from ghostserve.parity.store import ParityStore
from ghostserve.protect.base import Kept, Strategy

__all__ = ["ReplicateSsd"]


class ReplicateSsd(Strategy):
    name = "replicate-ssd"
    medium = "a file, by way of host memory"

    def __init__(self, parity: str) -> None:
        return  # no code to choose

    def code(self, num_shards: int) -> Code | None:
        return CopyCode(num_shards, num_shards)

    def encoder(self, wanted: EncoderPolicy) -> EncoderPolicy:
        return "striped"

    def kept(self, geometry: StoreGeometry) -> Kept:
        return Kept(host=FileStore.region_bytes(geometry), disk=geometry.payload_bytes)

    def create(self, geometry: StoreGeometry, folder: str) -> ParityStore:
        return FileStore.create_in(folder, geometry)

    def attach(self, fds: tuple[int, ...], geometry: StoreGeometry) -> ParityStore:
        records, file = fds
        return FileStore.attach_file(records, file, geometry)
