"""The installed command, as a user runs it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["COMMAND", "RunCommand", "run_command"]

COMMAND = str(Path(sys.executable).with_name("ghostserve"))

RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]


def run_command(*arguments: str, seconds: float = 120) -> "subprocess.CompletedProcess[str]":
    """Run it to its end."""
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL
    )
