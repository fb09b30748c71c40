"""The one exception family of GhostServe.

Every message carries the value that was refused and what is allowed instead.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CudaError",
    "DeviceMemoryError",
    "DeviceUnavailableError",
    "DiskBudgetError",
    "GhostServeError",
    "MemoryBudgetError",
    "PeerAccessError",
    "RequestError",
    "StaleEpochError",
    "StoreMismatchError",
    "TooManyLostError",
    "UnsupportedCodeError",
    "UnsupportedModelError",
]


class GhostServeError(Exception):
    """Base of all errors that GhostServe raises on purpose."""


class ConfigError(GhostServeError, ValueError):
    """A setting that can't be served; raised before anything starts."""


class UnsupportedCodeError(ConfigError):
    """No code of this name serves this many data and parity shards (or these shard sizes)."""


class UnsupportedModelError(ConfigError):
    """A model needs something that the engine does not do; the message names it."""


class CheckpointError(ConfigError):
    """A checkpoint folder or GGUF file is missing, incomplete or of no known type."""


class MemoryBudgetError(GhostServeError):
    """Host memory is too small for what was asked; carries bytes needed and bytes available."""

    def __init__(self, message: str, *, needed: int, available: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.available = available


class DiskBudgetError(GhostServeError):
    """A folder can't hold what was asked; the message names it, the bytes and what the system said."""


class CudaError(GhostServeError):
    """A call into CUDA failed; the message says what was tried with which numbers, and what to do.

    `code` is CUDA's own name of the error ("cudaErrorInvalidValue"), empty where the call was never made.
    """

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class DeviceMemoryError(CudaError):
    """A GPU's memory is too small for what was asked; carries bytes needed and bytes free."""

    def __init__(self, message: str, *, needed: int, available: int, code: str = "cudaErrorMemoryAllocation") -> None:
        super().__init__(message, code=code)
        self.needed = needed
        self.available = available


class PeerAccessError(CudaError):
    """Another process's device memory can't be mapped here; shards can be staged over the host instead."""


class DeviceUnavailableError(ConfigError):
    """This machine's GPUs, driver or NCCL can't serve what was asked; raised before anything starts."""


class StoreMismatchError(GhostServeError):
    """An attached parity store has another magic, version or geometry than expected."""


class StaleEpochError(GhostServeError):
    """A writer of an older epoch tried to change something after the group was fenced."""

    def __init__(self, *, found: int, expected: int) -> None:
        super().__init__(f"epoch {expected} is over, the group is at epoch {found}: nothing was committed")
        self.found = found
        self.expected = expected


class TooManyLostError(GhostServeError):
    """More shards are lost than the code has parity for."""

    def __init__(self, *, lost: tuple[int, ...], parity: int) -> None:
        super().__init__(f"shards {list(lost)} are lost: {len(lost)} of them, at most {parity} can be rebuilt")
        self.lost = lost
        self.parity = parity


class RequestError(GhostServeError, ValueError):
    """A request that can't be served; `param` names the offending field where there is one."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
