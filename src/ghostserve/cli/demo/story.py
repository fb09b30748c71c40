"""What happened so far: the streams, the kills, each recovery's timeline. Displays read it at any time."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ghostserve.cli.demo.prompts import StreamPlan
from ghostserve.status import EngineStatus, RecoveryRecord

__all__ = ["PHASES", "Recovery", "Story", "Stream"]

PHASES = ("detected", "released", "spawned", "weights", "rejoined", "rebuilt", "replayed", "resumed")

_ENDED_BY = {  # the machine's new phase -> what is over then
    "releasing": ("detected",),
    "rejoining": ("released", "spawned", "weights"),
    "rebuilding": ("rejoined",),
    "replaying": ("rebuilt",),
    "serving": ("replayed", "resumed"),
}


@dataclass
class Stream:
    """What one HTTP client has received."""

    plan: StreamPlan
    request_id: str = ""
    prompt_tokens: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    def pause(self, start: float, stop: float) -> float:
        """The longest wait for a token that ended between two moments."""
        arrivals = zip(self.times, self.times[1:], strict=False)
        return max((later - earlier for earlier, later in arrivals if start < later <= stop), default=0.0)


@dataclass
class Recovery:
    """One kill and what followed; `marks` are seconds since the kill at which a phase was over."""

    rank: int
    pid: int
    killed_at: float
    marks: dict[str, float] = field(default_factory=dict)
    bytes_wiped: int = 0
    record: RecoveryRecord | None = None


class Story:
    """Written by the event loop and, through `observe`, by the coordinator's thread; `say` gets a line an event."""

    def __init__(self, plans: tuple[StreamPlan, ...]) -> None:
        self.streams = [Stream(plan) for plan in plans]
        self.recoveries: list[Recovery] = []
        self.status: EngineStatus | None = None
        self.say: Callable[[str], None] = lambda line: None

    @property
    def fewest_tokens(self) -> int:
        return min(len(stream.token_ids) for stream in self.streams)

    @property
    def most_tokens(self) -> int:
        return max(len(stream.token_ids) for stream in self.streams)

    def killed(self, rank: int, pid: int) -> None:
        """The demo has sent SIGKILL."""
        counts = ", ".join(str(len(stream.token_ids)) for stream in self.streams)
        self.say(f"SIGKILL to rank {rank}, pid {pid}, while all stream (tokens so far: {counts})")
        self.recoveries.append(Recovery(rank, pid, time.monotonic()))

    def observe(self, event: str, details: dict[str, object]) -> None:
        """Takes the engine's events."""
        recovery = self.recoveries[-1] if self.recoveries else None
        if recovery is None or recovery.record is not None:
            return
        since = time.monotonic() - recovery.killed_at
        match event, details:
            case "phase", {"phase": str(phase)}:
                for name in _ENDED_BY.get(phase, ()):
                    recovery.marks[name] = since
                self.say(f"  {since:6.2f} s  {', '.join(_ENDED_BY.get(phase, (phase,)))}")
            case "wiped", {"bytes": int(count), "rank": int(rank)}:
                recovery.bytes_wiped += count
                self.say(f"  {since:6.2f} s  the KV of rank {rank} is wiped: {count:,} bytes in use are lost")
            case "resumed", {"record": RecoveryRecord() as record}:
                self._resumed(recovery, record)

    def _resumed(self, recovery: Recovery, record: RecoveryRecord) -> None:
        """The record has the exact times, counted from the detection."""
        detected = recovery.marks.get("detected", 0.0)
        recovery.marks |= {name: detected + seconds for name, seconds in record.phases}
        recovery.record = record
        for reason in record.plan:
            self.say(f"            {reason}")
        self.say(f"            {record.bytes_rebuilt:,} bytes rebuilt; all streams go on")
