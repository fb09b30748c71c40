"""The ranks' KV caches as one rank on a GPU holds them: its own memory, and its peers' mapped by their handles.

A dead rank's memory is only freed once nobody maps it any more. So survivors close their mappings when they are
released, and a newcomer takes memory for its cache when it joins, which is after that.
"""

from collections.abc import Sequence

from ghostserve.cuda.arena import DeviceArena, PeerArena
from ghostserve.cuda.interface import Runtime

__all__ = ["DeviceCaches"]


class DeviceCaches:
    """`own` lives as long as the process; peers only from `attach` to `release`."""

    def __init__(self, runtime: Runtime, nbytes: int) -> None:
        """Takes this rank's `nbytes` bytes, poisoned. Raises `DeviceMemoryError` if the GPU has no room."""
        self._runtime = runtime
        self._peers: list[PeerArena] = []
        self.own = DeviceArena.allocate(runtime, nbytes)

    def attach(self, rank: int, handles: Sequence[bytes]) -> list[DeviceArena | PeerArena]:
        """All ranks' caches, of which `rank` is the own one; `handles` in rank order.

        Raises `PeerAccessError` for a peer that has died since; what was mapped by then goes with `release`.
        """
        arenas: list[DeviceArena | PeerArena] = []
        for number, handle in enumerate(handles):
            if number == rank:
                arenas.append(self.own)
            else:
                peer = PeerArena.open(self._runtime, handle, self.own.nbytes)
                self._peers.append(peer)
                arenas.append(peer)
        return arenas

    def release(self) -> None:
        """Unmap every peer. Nothing may be reading them any more. Idempotent."""
        while self._peers:
            self._peers.pop().close()
