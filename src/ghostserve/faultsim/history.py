"""What the clients saw, and whether it is what an undisturbed run would have shown them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ghostserve.errors import GhostServeError
from ghostserve.sampling import TokenOutput

__all__ = ["Client", "History"]


@dataclass
class Client:
    """One request: `expected` is every token it must get, in order."""

    name: str
    expected: list[int]
    got: int = 0
    over: bool = False
    hung_up: bool = False
    error: GhostServeError | None = None


@dataclass
class History:
    """`violations`: broken promises, each a sentence; `trace`: what happened, a line each."""

    now: Callable[[], float]
    clients: dict[str, Client] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        self.trace.append(f"{self.now():8.3f} s  {line}")

    def broken(self, promise: str) -> None:
        self.violations.append(promise)
        self.note(f"BROKEN PROMISE: {promise}")

    def hear(self, client: Client, output: TokenOutput | GhostServeError) -> None:
        """A client's sink: every token must be the next one expected."""
        if isinstance(output, GhostServeError):
            client.error, client.over = output, True
            return
        if client.over or client.hung_up:
            self.broken(f"{client.name} was sent a token after its end")
        elif client.expected[client.got] != output.token_id:
            where = "a token again" if output.token_id in client.expected[: client.got] else "a wrong token"
            self.broken(f"{client.name} was sent {where} as its number {client.got}")
        client.got += 1
        if output.finish_reason is not None:
            client.over = True
            if client.got != len(client.expected):
                self.broken(f"{client.name} ended after {client.got} of {len(client.expected)} tokens")
        elif client.got >= len(client.expected):
            client.over = True
            self.broken(f"{client.name} was not told that its last token was the last")
