"""`ghostserve soak`: options, a line of progress, a table of what was found, JSON, and the exit code."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ghostserve.errors import ConfigError
from ghostserve.signals import unwinding_on_sigterm
from ghostserve.soak.settings import SoakSettings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ghostserve.soak.report import Found, Report

__all__ = ["soak"]

DEFAULTS = SoakSettings()
_LOG_WIDTH = 150  # of a file: the table unbroken
_TERMINATED = 143
_LINES = 10
"""So many lines about the strikes where the output is no terminal."""


def soak(
    *,
    kills: int = DEFAULTS.kills,
    seed: int = DEFAULTS.seed,
    clients: int = DEFAULTS.clients,
    engine: str = DEFAULTS.engine,
    model: str | None = None,
    tensor_parallel_size: Annotated[int, Parameter(alias="-tp")] = DEFAULTS.tensor_parallel_size,
    parity: str = DEFAULTS.parity,
    standbys: int = DEFAULTS.standbys,
    step_deadline: float = DEFAULTS.step_deadline,
    phase_deadline: float = DEFAULTS.phase_deadline,
    sabotage: str | None = None,
    output: Path | None = None,
) -> int:
    """Strike a live server's workers at random, and compare every token with an undisturbed rerun.

    Starts its own server on this machine's CPU and stops it. Exits with 1 if a token or logprob differs, a stream
    fails, or anything leaks.

    Parameters
    ----------
    kills
        Processes to strike, by SIGKILL or SIGSTOP: ranks in prefill, decode or idle, several at once as far as parity
        covers, during a recovery, standbys.
    seed
        Decides whom, how and when, and what the clients ask.
    clients
        Streams that run at once.
    engine
        embedded, or vllm: stock vLLM with GhostServe's plug-in.
    model
        A transformers checkpoint folder; by default a small one with random weights, made for this run.
    tensor_parallel_size
        Worker processes that share the model.
    parity
        The code that protects the KV cache: xor, rdp or rs:K.
    standbys
        Pre-imported processes that wait to take a lost rank's place.
    step_deadline
        Seconds after which a stopped rank counts as hanging.
    phase_deadline
        Seconds that a phase of a recovery may take, and the imports of a worker that is waited for.
    sabotage
        skip-rebuild: newcomers keep their poisoned KV, to prove that the comparison can fail.
    output
        Write settings, machine and figures to this file, as JSON.
    """
    from rich.console import Console

    from ghostserve.cli.logs import quiet_progress_bars

    settings = SoakSettings(
        kills=kills,
        seed=seed,
        clients=clients,
        engine=engine,
        model=model,
        tensor_parallel_size=tensor_parallel_size,
        parity=parity,
        standbys=standbys,
        step_deadline=step_deadline,
        phase_deadline=phase_deadline,
        sabotage=sabotage,
    )
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"output {str(output)!r} can't be written: its folder does not exist")
    quiet_progress_bars()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_LOG_WIDTH)
    from ghostserve.soak.run import run_soak

    # The server has a session of its own: nobody else would end it.
    with unwinding_on_sigterm(_TERMINATED), _Progress(console) as progress:
        report = run_soak(settings, progress)
    console.print(_table(settings, report))
    for problem in report.problems:
        console.print(problem, style="red", markup=False)
    console.print(_last_words(settings, report), style="bold green" if report.passed else "bold red")
    if output is not None:
        _write(output, settings, report)
    return 0 if report.passed else 1


class _Progress:
    """One line that changes in place; on what is no terminal a line now and then."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[more]}")
        self._console = console
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=None, more="")
        self._began = time.monotonic()
        self._shown = 0

    def __enter__(self) -> "_Progress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.update(self._task, visible=False)
        self._progress.stop()

    def stage(self, text: str) -> None:
        self._shown = 0
        self._progress.reset(self._task, total=None, description=text, more="")
        self._say(text)

    def struck(self, found: "Found", wanted: int) -> None:
        kills = len(found.blows)
        more = f"{kills} of {wanted} kills, {len(found.streams)} streams"
        if found.pauses:
            more += f", longest pause {max(found.pauses):.2f} s"
        self._progress.update(self._task, total=wanted, completed=kills, more=more)
        self._now_and_then(kills, wanted, more)

    def progress(self, done: int, total: int) -> None:
        self._progress.update(self._task, total=total, completed=done, more=f"{done} of {total} steps")

    def _now_and_then(self, done: int, total: int, text: str) -> None:
        part = done * _LINES // max(1, total)
        if part > self._shown:
            self._shown = part
            self._say(text)

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"[{time.monotonic() - self._began:6.1f} s] {text}", markup=False)


def _table(settings: SoakSettings, report: "Report") -> "Table":
    from rich.table import Table

    from ghostserve.cli.sizes import show_size

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    ranks = f"{settings.tensor_parallel_size} ranks, {settings.standbys} standbys, parity {settings.parity}"
    table.add_row("server", f"{settings.engine}, {ranks}; {settings.clients} clients, seed {settings.seed}")
    table.add_row("kills", f"{report.kills} in {report.seconds:.0f} s")
    for kind, count in report.kills_by_kind.items():
        table.add_row("", f"{count:5} {kind}")
    table.add_row("recoveries", str(report.recoveries))
    if (pauses := report.pauses) is not None:
        figures = f"P50 {pauses.p50:.2f} s, P99 {pauses.p99:.2f} s, longest {pauses.longest:.2f} s"
        table.add_row("pauses", f"{figures}, over {pauses.count} strikes that streams were waiting in")
    again = "" if report.computed_again is None else f", {report.computed_again} tokens computed again for them"
    table.add_row("recomputed", f"{report.recomputed_requests} requests{again}; {report.recomputed_slots} slots of KV")
    table.add_row("compared", f"{report.streams} streams, {report.tokens} tokens with their logprobs, bit by bit")
    table.add_row("differences", str(report.differences))
    table.add_row("leaks", ", ".join(report.leaks) or f"none; resident memory {_signed(report.rss_growth, show_size)}")
    return table


def _signed(count: int, show: Any) -> str:
    return f"{'-' if count < 0 else '+'}{show(abs(count))}"


def _last_words(settings: SoakSettings, report: "Report") -> str:
    if report.passed:
        return "Every stream is what an undisturbed run of the same schedule draws, and nothing is left behind."
    if settings.sabotage is not None and report.differences:
        return "Sabotaged on purpose, and the comparison saw it: the check can fail."
    return "NOT as promised."


def _write(path: Path, settings: SoakSettings, report: "Report") -> None:
    import msgspec

    from ghostserve.cli.machine import machine

    content = {"settings": settings, "machine": machine(), "passed": report.passed, "report": report}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
