"""The demo as a picture: ranks, streams, and the timeline of each recovery."""

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ghostserve.cli.demo.story import PHASES, Recovery, Story, Stream
from ghostserve.cli.sizes import show_size

__all__ = ["Picture"]

_STATES = {"up": "green", "ready": "green", "recovering": "yellow", "starting": "yellow", "lost": "bold red"}
_STREAM_COLUMNS = 52  # what the columns beside the text and the frame take
_RECOVERY_COLUMNS = 30  # what a recovery's times and amounts take, with a share of the frame
_BAR = 24  # the widest bar
_WAITING = "·"


class Picture:
    """A renderable that shows the story as it stands at the moment of drawing."""

    def __init__(self, story: Story, title: str, max_tokens: int) -> None:
        self._story = story
        self._title = title
        self._max_tokens = max_tokens

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts = (self._ranks(), Text(), self._streams(options.max_width), Text(), self._recoveries(options.max_width))
        yield Panel(Group(*parts), title=self._title, title_align="left", border_style="cyan", padding=(0, 1))

    def _ranks(self) -> Text:
        """One line: `rank 0 4711 up`, ...; with the pids that were killed before."""
        line = Text(no_wrap=True, overflow="ellipsis")
        status = self._story.status
        for rank in status.ranks if status is not None else ():
            line.append(f"rank {rank.rank} ", "bold")
            for gone in (r for r in self._story.recoveries if r.rank == rank.rank):
                line.append(f"{gone.pid}", "red strike")
                line.append(" ")
            line.append(f"{rank.pid or _WAITING} ")
            line.append(rank.state, _STATES.get(rank.state, ""))
            line.append("   ")
        for standby in status.standbys if status is not None else ():
            line.append("standby ", "bold")
            line.append(f"{standby.pid} ")
            line.append(standby.state, _STATES.get(standby.state, ""))
        return line if line else Text("the ranks are starting", "dim")

    def _streams(self, width: int) -> Table:
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim")
        table.add_column("stream")
        table.add_column("prompt", justify="right")
        table.add_column("sampling", no_wrap=True)
        table.add_column("tokens", justify="right")
        table.add_column("text, as it comes over HTTP", no_wrap=True, ratio=1)
        for stream in self._story.streams:
            table.add_row(
                Text(stream.plan.name, "bold"),
                str(stream.prompt_tokens or _WAITING),
                Text(stream.plan.sampling, "cyan"),
                self._count(stream),
                Text(_tail(stream.text, width - _STREAM_COLUMNS), "white"),
            )
        return table

    def _count(self, stream: Stream) -> Text:
        over = stream.finish_reason is not None
        return Text(f"{len(stream.token_ids)}/{self._max_tokens}", "green" if over else "yellow")

    def _recoveries(self, width: int) -> Table:
        """Phases down, one column group a recovery: when a phase was over, what it moved, and a bar of its time."""
        recoveries = self._story.recoveries
        bar = min(_BAR, width // max(1, len(recoveries)) - _RECOVERY_COLUMNS)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("recovery", no_wrap=True, min_width=8)
        for recovery in recoveries:
            table.add_column(Text("kill +", "red"), justify="right", no_wrap=True)
            table.add_column(Text(f"rank {recovery.rank}", "bold red"), no_wrap=True, min_width=10)
            table.add_column(no_wrap=True, min_width=max(0, bar))
        for phase in PHASES:
            cells = [cell for recovery in recoveries for cell in _cells(recovery, phase, bar)]
            table.add_row(phase, *cells, style="" if recoveries else "dim")
        return table


def _cells(recovery: Recovery, phase: str, bar: int) -> tuple[Text, Text, Text]:
    if phase not in recovery.marks:
        return Text(_WAITING, "dim"), Text(), Text()
    return Text(f"{recovery.marks[phase]:.2f} s"), Text(_amount(recovery, phase), "cyan"), _bar(recovery, phase, bar)


def _amount(recovery: Recovery, phase: str) -> str:
    """What was lost when the rank's KV was wiped, what was rebuilt, what was replayed."""
    record = recovery.record
    if phase == "released" and recovery.bytes_wiped:
        return f"-{show_size(recovery.bytes_wiped)}"
    if phase == "rebuilt" and record is not None:
        return f"+{show_size(record.bytes_rebuilt)}"
    if phase == "replayed" and record is not None:
        return f"steps: {record.replayed_steps}"
    return ""


def _bar(recovery: Recovery, phase: str, width: int) -> Text:
    """From the end of what came before to the end of this phase, on the scale of the whole recovery."""
    end = recovery.marks[phase]
    start = max((mark for mark in recovery.marks.values() if mark < end), default=0.0)
    scale = max(0, width) / max(max(recovery.marks.values()), 1e-9)
    first = int(start * scale)
    length = max(1, round(end * scale) - first) if width > 0 else 0
    return Text(" " * min(first, max(0, width - 1)) + "━" * length, "green" if phase == "resumed" else "yellow")


def _tail(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else "…" + flat[1 - max(2, width) :]
