# SPDX-License-Identifier: MIT
"""The command `tokenspeed`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from . import __version__

COMMANDS = (
    "serve",
    "generate",
    "bench",
    "explain",
    "check",
    "kernels",
    "scheduler",
    "simulate",
    "top",
    "profile",
    "env",
    "keys",
    "pull",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; 2 for a wrong command line or setting, 1 for any other failure."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser(given).parse_args(given)
    if parsed.command is None:
        _parser([]).print_help()
        return 2
    try:
        return int(import_module(f".cli.{parsed.command}", __package__).run(parsed))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # our own errors are written for the user; any other is a bug and shows its traceback
        if not type(error).__module__.startswith(__package__ or "tokenspeed_core"):
            raise
        print(f"tokenspeed: error: {error}", file=sys.stderr)
        return 2 if type(error).__name__ == "ConfigError" else 1


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenspeed", description="An LLM inference engine for agentic workloads."
    )
    parser.add_argument("--version", action="version", version=f"tokenspeed {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in COMMANDS:
        module = import_module(f".cli.{name}", __package__)
        command = commands.add_parser(name, help=module.HELP, description=module.DESCRIPTION)
        if name in given:  # flags of commands that are not asked for are never built
            module.add_arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
