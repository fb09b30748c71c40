"""The `ghostserve` command. What is heavy (torch, transformers) is imported inside the commands only."""

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from ghostserve import __version__
from ghostserve.cli.commands import COMMANDS
from ghostserve.errors import ConfigError, GhostServeError

__all__ = ["app", "main"]

app = App(
    name="ghostserve",
    help="Keeps LLM streams alive, token for token, when a tensor-parallel worker dies.",
    help_format="plaintext",
    version=__version__,
)
for command in COMMANDS:
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. An error is one line on stderr: 2 for bad settings, else 1."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["serve"]:
            _become_vllm(words)
        code = app(
            words,
            result_action="return_value",
            exit_on_error=False,
            print_error=False,
        )
    except (CycloptsError, ConfigError) as error:
        return _refuse(error, 2)
    except GhostServeError as error:
        return _refuse(error, 1)
    return code if isinstance(code, int) else 0


def _become_vllm(words: list[str]) -> None:
    """Does not come back if the engine is vLLM: its options are not this command line's to know."""
    from ghostserve.cli.serve_vllm import is_vllm, serve_vllm

    if is_vllm(words):
        serve_vllm(words[1:])


def _refuse(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
