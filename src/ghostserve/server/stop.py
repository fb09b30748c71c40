"""Stop strings in a stream of text."""

from collections.abc import Sequence

__all__ = ["StopBuffer"]


class StopBuffer:
    """Passes text on up to the first stop string, however the text is cut into pieces.

    The stop string that is complete first ends the text (of several that end at the same character, the
    longest); it is not part of it. Text that may be the beginning of a stop string is held back
    until that is settled.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Add text; returns the text that may be sent and the stop string that was found, if any."""
        held = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := held.find(stop)) >= 0]
        if found:
            self._held = ""
            _, start, stop = min(found)
            return held[:start], stop
        sent = len(held) - max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[sent:]
        return held[:sent], None

    def flush(self) -> str:
        """The text still held back, when no more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
