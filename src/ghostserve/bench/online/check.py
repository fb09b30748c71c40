"""Before a figure counts: every client has what was recorded for it, and an undisturbed run draws the same."""

from collections.abc import Callable, Iterable, Sequence

from ghostserve.bench.online.client import Stream
from ghostserve.engine.rerun import Undisturbed
from ghostserve.engine.serving import LoggedStep
from ghostserve.errors import GhostServeError

__all__ = ["check_delivered", "check_undisturbed"]


def check_delivered(
    strategy: str, streams: Iterable[Stream], outputs: Iterable[int], recording: Sequence[LoggedStep]
) -> None:
    """Raise `GhostServeError` unless each stream has its number of tokens, once and in order, as they were recorded."""
    recorded: dict[str, list[int]] = {}
    for entry in recording:
        for request_id, drawn in (entry.accepted or {}).items():
            recorded.setdefault(request_id, []).append(drawn.token_id)
    for stream, wanted in zip(streams, outputs, strict=True):
        if len(stream.tokens) != wanted or stream.tokens != recorded.get(stream.request_id):
            raise GhostServeError(
                f"{strategy}: {stream.request_id} was sent {len(stream.tokens)} tokens of {wanted},"
                " and they are not those that were recorded in their order"
            )


def check_undisturbed(
    strategy: str, oracle: Undisturbed, recording: Sequence[LoggedStep], on_progress: Callable[[int, int], None]
) -> int:
    """Run the schedule again on workers that nobody kills; tokens compared. Raises `GhostServeError` if one differs.

    This holds for `none` as well: what it computes again is in its schedule, and the same schedule gives the same bits.
    """
    found = oracle.compare(recording, on_progress)
    if found.differences or not found.compared:
        raise GhostServeError(
            f"{strategy}: {len(found.differences)} of {found.compared} tokens differ from the undisturbed run:"
            " no figure of this benchmark counts"
        )
    return found.compared
