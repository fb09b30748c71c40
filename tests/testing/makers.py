"""How the stores of GhostServe are made and attached, for all suites that try them."""

import tempfile

from ghostserve.parity import ParityStore, StoreGeometry
from ghostserve.parity.file_store import FileStore


class InMemory:
    def create(self, geometry: StoreGeometry, epoch: int = 1) -> ParityStore:
        return ParityStore.create(geometry, epoch)

    def attach(self, fds: tuple[int, ...], geometry: StoreGeometry) -> ParityStore:
        (fd,) = fds
        return ParityStore.attach(fd, geometry)


class OnDisk:
    def create(self, geometry: StoreGeometry, epoch: int = 1) -> ParityStore:
        return FileStore.create_in(tempfile.gettempdir(), geometry, epoch)

    def attach(self, fds: tuple[int, ...], geometry: StoreGeometry) -> ParityStore:
        records, file = fds
        return FileStore.attach_file(records, file, geometry)
