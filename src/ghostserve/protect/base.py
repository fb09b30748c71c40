"""The contract of a protection strategy: what is kept of the KV cache outside the ranks, where, and who writes it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ghostserve.checkpoint.ledger import EncoderPolicy
from ghostserve.codes import Code
from ghostserve.parity.geometry import StoreGeometry
from ghostserve.parity.store import ParityStore

__all__ = ["Kept", "Strategy"]


@dataclass(frozen=True)
class Kept:
    """Bytes that a strategy takes for a store: of host memory and of a disk."""

    host: int
    disk: int


class Strategy(ABC):
    """Says what is computed from a slot's shards (a code), in which store it is kept, and which ranks do the writing.

    Everything else is the same for all: the ledger, commits, generations, checksums, the plan and the rebuild. A
    strategy holds no state; each process makes its own from the settings.
    """

    name: str
    medium: str = "host memory"
    """Where it is kept, for the status."""

    @abstractmethod
    def __init__(self, parity: str) -> None:
        """`parity`: the code that the settings name. Raises `ConfigError` where it does not go with the strategy."""

    @abstractmethod
    def code(self, num_shards: int) -> Code | None:
        """What is kept of a slot's `num_shards` data shards; None: nothing.

        Raises `UnsupportedCodeError` for a number that it does not serve.
        """

    def encoder(self, wanted: EncoderPolicy) -> EncoderPolicy:
        """Who flushes a chunk, where the settings say `wanted`."""
        return wanted

    def covers(self, num_shards: int) -> int:
        """How many data shards can be lost at once and come back."""
        code = self.code(num_shards)
        return 0 if code is None else code.k

    @abstractmethod
    def kept(self, geometry: StoreGeometry) -> Kept:
        """What a store of this geometry takes."""

    @abstractmethod
    def create(self, geometry: StoreGeometry, folder: str) -> ParityStore:
        """The coordinator's store; `folder` is for strategies that write files.

        Raises `MemoryBudgetError` or `DiskBudgetError` where there is no room for it.
        """

    @abstractmethod
    def attach(self, fds: tuple[int, ...], geometry: StoreGeometry) -> ParityStore:
        """A worker's view of the store whose `fds` it inherited. Raises `StoreMismatchError` if it is another."""
