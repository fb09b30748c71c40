"""Who is let in: counts the sequences in the engine, and refuses with a hint when to come again."""

from ghostserve.server.engine_client import EngineClient
from ghostserve.server.errors import ApiError
from ghostserve.server.settings import ServerSettings

__all__ = ["Admission", "Ticket"]


class Ticket:
    """An admitted request's place. Whoever holds it must release it, however the request ends."""

    def __init__(self, admission: "Admission", sequences: int) -> None:
        self._admission = admission
        self._sequences = sequences

    def release(self) -> None:
        """Give the place back. Idempotent."""
        self._admission.sequences -= self._sequences
        self._sequences = 0


class Admission:
    """The door to the engine, used from the event loop only. The engine's own bound behind it is the last line."""

    def __init__(self, engine: EngineClient, settings: ServerSettings) -> None:
        self._engine = engine
        self._settings = settings
        self.sequences = 0
        """Sequences that are in the engine now."""

    def admit(self, sequences: int) -> Ticket:
        """A place for so many sequences at once.

        Raises `ApiError`: 400 for more than there can ever be, 503 while a recovery takes too long, 429 when full.
        """
        most = self._engine.max_sequences
        if sequences > most:
            raise ApiError(f"the request has {sequences} choices: this server takes at most {most} at once")
        self._check_recovery()
        if self.sequences + sequences > most:
            raise ApiError(
                f"{self.sequences} sequences are running or queued, and this request has {sequences}:"
                f" at most {most} are taken",
                status=429,
                code="too_many_requests",
            )
        self.sequences += sequences
        return Ticket(self, sequences)

    def _check_recovery(self) -> None:
        status = self._engine.status()
        if status.state == "recovering" and status.recovering_seconds > self._settings.recovery_patience:
            raise ApiError(
                f"a recovery has been under way for {status.recovering_seconds:.0f} s: new requests wait for one at"
                f" most {self._settings.recovery_patience:g} s",
                status=503,
                code="recovering",
            )
