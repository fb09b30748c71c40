"""Which rank runs on which GPU, and how shards travel between them: a decision with its reasons."""

from collections import Counter
from dataclasses import dataclass, field

from ghostserve.cuda.facts import MULTI_RANK, DeviceFact, Facts, gather_facts, gather_facts_apart
from ghostserve.errors import DeviceMemoryError, DeviceUnavailableError
from ghostserve.parity.limits import format_bytes

__all__ = ["DeviceChoice", "DeviceFact", "Facts", "choose_devices", "gather_facts", "gather_facts_apart"]

NCCL_MULTI_RANK = (2, 30)
CONTEXT_BYTES = 600 << 20
"""What CUDA and NCCL take on a GPU for each process, before any tensor."""


@dataclass(frozen=True)
class DeviceChoice:
    """`devices[rank]` is the GPU of a rank; `path` is "cuda-ipc", or "cuda-staged" where that is refused.

    Staged: each rank copies its shards into pinned host memory that the encoder maps. `environment` is to be set for
    every rank before it makes its communicator. `reasons` are sentences for the status.
    """

    devices: tuple[int, ...]
    path: str
    reasons: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def shared(self) -> bool:
        """True if some GPU has several ranks."""
        return len(set(self.devices)) < len(self.devices)


def choose_devices(facts: Facts, ranks: int, needed_bytes: int = 0) -> DeviceChoice:
    """Place `ranks` ranks, each of which takes `needed_bytes` bytes of device memory beside its context.

    Raises `DeviceUnavailableError` (a `ConfigError`) where nothing can work, and `DeviceMemoryError`.
    """
    _require_cuda(facts)
    count = len(facts.devices)
    if ranks < 1:
        raise DeviceUnavailableError(f"{ranks} ranks: there must be at least 1")
    if ranks > 1 and facts.nccl is None:
        raise DeviceUnavailableError(
            f"{ranks} ranks need NCCL, and this torch has none: install a CUDA build with NCCL"
        )
    # By turns, so that ranks which hold the same KV heads (neighbours) are on different GPUs.
    devices = tuple(rank % count for rank in range(ranks))
    reasons = [f"{ranks} ranks on {min(ranks, count)} of {count} GPUs ({facts.devices[0].name})"]
    environment: dict[str, str] = {}
    if ranks > count:
        reasons.append(_sharing(facts, ranks))
        environment[MULTI_RANK] = "1"
    _require_memory(facts, devices, needed_bytes)
    problem = _peer_problem(facts, devices)
    if problem is None:
        reasons.append("the encoder reads its peers' caches in place (CUDA IPC)")
    else:
        reasons.append(f"shards are staged over pinned host memory, since {problem}")
    return DeviceChoice(devices, "cuda-ipc" if problem is None else "cuda-staged", tuple(reasons), environment)


def _require_cuda(facts: Facts) -> None:
    if facts.problem is not None or not facts.devices:
        raise DeviceUnavailableError(f"no CUDA device can be used: {facts.problem or 'none is visible'}")
    # Within one major version newer bindings run on an older driver.
    if facts.bindings // 1000 > facts.driver // 1000:
        raise DeviceUnavailableError(
            f"cuda-bindings is of CUDA {_version(facts.bindings)}, the driver serves up to {_version(facts.driver)}: "
            f"install cuda-bindings<{facts.driver // 1000 + 1} or a newer driver"
        )


def _sharing(facts: Facts, ranks: int) -> str:
    """Why several ranks may share a GPU here, as a sentence."""
    count = len(facts.devices)
    found = ".".join(map(str, facts.nccl or ()))
    few = f"{ranks} ranks on {count} GPU{'s' if count > 1 else ''} share GPUs"
    advice = f"use at most {count} ranks (tensor parallelism)"
    if facts.nccl is None or facts.nccl[:2] < NCCL_MULTI_RANK:
        raise DeviceUnavailableError(f"{few}, which needs NCCL >= 2.30, and NCCL {found} is loaded: {advice}")
    if facts.multi_rank not in (None, "1"):
        raise DeviceUnavailableError(f"{few}, which {MULTI_RANK}={facts.multi_rank} forbids: set it to 1 or {advice}")
    exclusive = [i for i, device in enumerate(facts.devices) if device.exclusive]
    if exclusive:
        raise DeviceUnavailableError(
            f"{few}, but the compute mode of GPU {exclusive[0]} is 'exclusive process': "
            f"`nvidia-smi -c DEFAULT` (by the administrator) or {advice}"
        )
    return (
        f"ranks share GPUs (NCCL {found} with {MULTI_RANK}=1): slow, and a GPU that fails takes all of its ranks along"
    )


def _require_memory(facts: Facts, devices: tuple[int, ...], needed_bytes: int) -> None:
    for device, sharers in sorted(Counter(devices).items()):
        needed = sharers * (needed_bytes + CONTEXT_BYTES)
        found = facts.devices[device]
        if needed > found.free:
            raise DeviceMemoryError(
                f"GPU {device} ({found.name}) has {format_bytes(found.free)} of {format_bytes(found.total)} free, "
                f"{sharers} rank{'s' if sharers > 1 else ''} need {format_bytes(needed)} there "
                f"({format_bytes(needed_bytes)} each and {format_bytes(CONTEXT_BYTES)} for CUDA): use fewer cache "
                f"blocks, more GPUs or a smaller model",
                needed=needed,
                available=found.free,
                code="",
            )


def _peer_problem(facts: Facts, devices: tuple[int, ...]) -> str | None:
    if len(devices) == 1:
        return None
    if facts.ipc_problem is not None:
        return f"CUDA IPC does not work here: {facts.ipc_problem}"
    used = sorted(set(devices))
    for i in used:
        for j in used:
            if not facts.peers[i][j]:
                return f"GPU {i} has no peer access to GPU {j}"
    return None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
