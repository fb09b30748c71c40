"""Strategies that break one promise each."""

from pathlib import Path
from tempfile import gettempdir

import numpy as np

from ghostserve.codes import ReedSolomonCode, XorCode, checksum_reference
from ghostserve.parity import ParityStore, StoreGeometry
from ghostserve.protect import Kept, Parity, ReplicateHost, ReplicateSsd


class Nameless(Parity):
    name = ""


class Nobody(Parity):
    """No rank writes."""

    def encoder(self, wanted):
        return "nobody"


class OneShardLess(Parity):
    def code(self, num_shards):
        return XorCode(max(1, num_shards - 1), 1)


class Draws(Parity):
    """Each process has a code of its own."""

    def code(self, num_shards):
        self.__class__.made = getattr(self.__class__, "made", 0) + 1
        return ReedSolomonCode(num_shards, 1 + self.made % 2)


class AtLeastOne(Parity):
    """Serves numbers that no code serves."""

    def code(self, num_shards):
        return super().code(max(1, num_shards))


class Wrong(XorCode):
    """Encodes with one code, and rebuilds with another."""

    def _encode_plan(self):
        return ReedSolomonCode(self.n, 1).encode_plan


class WrongCode(Parity):
    def code(self, num_shards):
        return Wrong(num_shards, 1)


class Modest(Parity):
    """Brings back more than it says."""

    def __init__(self, parity):
        super().__init__("rs:2")

    def covers(self, num_shards):
        return 1


class Useless(Parity):
    """Keeps parity, and covers nothing."""

    def covers(self, num_shards):
        return 0


class Believing(ParityStore):
    """Says of what is not committed that it is, with the checksums of zeros, which an empty payload has."""

    def committed_slots(self, ranges):
        return super().committed_slots(ranges) | True

    def records(self, ranges):
        sums = super().records(ranges).copy()
        empty = np.zeros((1, self.geometry.slot_bytes), np.uint8)
        sums[~super().committed_slots(ranges)] = checksum_reference(empty)[0]
        return sums


class MakesUp(ReplicateHost):
    """Takes slots that were never flushed for zeros."""

    def create(self, geometry, folder):
        return Believing.create(geometry)


class AnyEpoch(ParityStore):
    def _check_epoch(self, epoch):
        return


class Unfenced(Parity):
    def attach(self, fds, geometry):
        return AnyEpoch.attach(*fds, geometry)


class OneStore(Parity):
    """Makes one store, and gives it to whoever asks."""

    def __init__(self, parity):
        super().__init__(parity)
        self.only = {}

    def create(self, geometry, folder):
        if geometry not in self.only:
            self.only[geometry] = super().create(geometry, folder)
        return ParityStore.attach(*self.only[geometry].fds, geometry)


class Understates(Parity):
    def kept(self, geometry):
        return Kept(host=geometry.payload_bytes, disk=0)


class Litters(Parity):
    """Leaves a file with a name."""

    def create(self, geometry, folder):
        (Path(folder) / "parity").write_bytes(b"")
        return super().create(geometry, folder)


class AttachesAnything(Parity):
    def attach(self, fds, geometry):
        try:
            return super().attach(fds, geometry)
        except Exception:  # noqa: BLE001 - what is broken is just this
            return ParityStore.create(geometry)


class Shrinks(Parity):
    """Where there is no room it makes a smaller store."""

    def create(self, geometry, folder):
        small = StoreGeometry(1, 1, 1, 1, 8)
        return ParityStore.create(small if geometry.slot_bytes > 1 << 40 else geometry)


class Elsewhere(ReplicateSsd):
    """Takes another folder than it was given."""

    def create(self, geometry, folder):
        return super().create(geometry, folder if Path(folder).exists() else gettempdir())
