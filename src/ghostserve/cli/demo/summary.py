"""The demo's last words: a table of what happened, and one sentence that says what it proves."""

import math

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ghostserve.cli.demo.settings import DemoSettings
from ghostserve.cli.demo.story import Recovery, Story
from ghostserve.cli.demo.verdict import KILLS, Verdict
from ghostserve.cli.sizes import show_size

__all__ = ["summary"]


def summary(story: Story, verdict: Verdict, settings: DemoSettings) -> RenderableType:
    """Everything that the exit code rests on."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    streams = len(story.streams)
    lengths = [stream.prompt_tokens for stream in story.streams]
    table.add_row("streams", f"{streams} over HTTP, prompts of {min(lengths)} to {max(lengths)} tokens")
    for number, recovery in enumerate(story.recoveries, 1):
        table.add_row(f"kill {number}", _kill(story, recovery))
    table.add_row("compared", f"{verdict.compared} tokens with their logprobs, bit by bit")
    table.add_row("differences", _differences(verdict))
    if verdict.first is not None:
        table.add_row("the first", verdict.first)
    received = f"{streams - len(verdict.garbled)} of {streams} streams exactly as the engine delivered them"
    table.add_row("clients got", received)
    style = "green" if verdict.passed else "red"
    return Panel(
        Group(table, Text(), Text(_proof(verdict, settings), f"bold {style}")),
        title="summary", title_align="left", border_style=style, padding=(0, 1),
    )  # fmt: skip


def _kill(story: Story, recovery: Recovery) -> str:
    record, lost = recovery.record, show_size(recovery.bytes_wiped)
    if record is None:
        return f"rank {recovery.rank}: not recovered"
    # Up to the next kill: its pause is not this one's.
    stop = min((r.killed_at for r in story.recoveries if r.killed_at > recovery.killed_at), default=math.inf)
    pauses = [stream.pause(recovery.killed_at, stop) for stream in story.streams]
    return (
        f"rank {recovery.rank}: {lost} of KV lost, {show_size(record.bytes_rebuilt)} rebuilt;"
        f" steps replayed: {record.replayed_steps}; requests recomputed: {record.recomputed_requests};"
        f" clients paused {max(pauses):.2f} s"
    )


def _differences(verdict: Verdict) -> Text:
    return Text(str(verdict.differences), "green" if not verdict.differences else "bold red")


def _proof(verdict: Verdict, settings: DemoSettings) -> str:
    if verdict.recovered < KILLS:
        return f"Nothing is proved: {verdict.recovered} of {KILLS} kills were made and recovered while all streamed."
    if settings.sabotage is not None:
        if verdict.same:
            return "The sabotage went unnoticed: this comparison can't be trusted."
        return "Sabotaged on purpose (the newcomers kept poisoned KV), and the comparison saw it: the check can fail."
    if not verdict.same:
        return "The streams are NOT what an undisturbed run draws: this is a bug."
    return (
        "Two workers were killed under these streams, and every token and logprob is what the same schedule gives"
        " when nobody is killed."
    )
