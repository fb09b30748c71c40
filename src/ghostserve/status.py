"""The engine's state as it is reported: by the server's status page, by metrics, and by tests."""

from typing import Literal

import msgspec

__all__ = ["EngineStatus", "RankStatus", "RecoveryRecord", "ScrubFinding", "StandbyStatus"]


class RankStatus(msgspec.Struct, frozen=True):
    """One tensor-parallel worker process."""

    rank: int
    pid: int
    state: str  # "up" counts as up; any other word (e.g. "lost", "loading") does not


class StandbyStatus(msgspec.Struct, frozen=True):
    """One pre-imported process that waits to take a lost rank's place; `pid` is 0 until it runs."""

    pid: int
    state: str


class RecoveryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One finished recovery; `phases` are (name, seconds since detection)."""

    epoch: int
    reason: str
    lost_ranks: list[int]
    seconds: float
    bytes_rebuilt: int
    replayed_steps: int
    recomputed_requests: int
    bytes_lost: int = 0
    bytes_read: int = 0
    recomputed_slots: int = 0  # of the lost KV, with the recorded bits; the rest was rebuilt
    rejected_slots: int = 0  # recomputed to other bits: rebuilt
    refill_seconds: float = 0.0
    predicted_seconds: float | None = None  # of the refill, from the rates measured before
    plan: list[str] = msgspec.field(default_factory=list)
    phases: list[tuple[str, float]] = msgspec.field(default_factory=list)


class ScrubFinding(msgspec.Struct, frozen=True):
    """Silent corruption of one slot. `where`: "rank 1", "parity shard 3", or "record"."""

    where: str
    block: int
    slot: int
    request_id: str
    remedy: str


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the engine; `/v1/fault_tolerance/status` sends it as it is."""

    state: Literal["serving", "recovering", "failed"]
    epoch: int
    step: int
    watermark: int
    ranks: list[RankStatus]
    standbys: list[StandbyStatus] = msgspec.field(default_factory=list)
    device: str = "cpu"  # or "cuda"
    data_path: str = "host"  # how KV becomes parity: "host", "cuda-ipc", "cuda-staged", "none"
    placement: list[str] = msgspec.field(default_factory=list)  # why these, and what was not possible
    protect: str = "none"  # "parity", "none", "replicate-host", "replicate-ssd"
    parity: str = "none"  # such as "rs:2"
    parity_bytes: int = 0  # of host memory, parity or copies
    disk_bytes: int = 0
    protected_tokens: int = 0
    unprotected_tokens: int = 0
    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0  # 0..1
    recoveries: list[RecoveryRecord] = msgspec.field(default_factory=list)
    scrub_rate: int = 0  # bytes a second; 0: no scrubbing
    scrub_findings: list[ScrubFinding] = msgspec.field(default_factory=list)  # the latest
    recovering_seconds: float = 0.0  # since the present recovery began; 0 while serving
    counters: dict[str, float] = msgspec.field(default_factory=dict)  # monotonic, exported by their names
