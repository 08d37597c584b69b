# SPDX-License-Identifier: MIT
"""`tokenspeed check`: whether a model definition computes what it should."""

import argparse

HELP = "check a family's .py file against transformers and on simulated meshes"
DESCRIPTION = (
    "Check that a model definition with a tiny config computes what transformers computes, with a "
    "cache; that the dispatcher sees no write to a parameter; that functorch's trace is ours; and "
    "that every small mesh, simulated in this process, gives the numbers of one device. Exit 1 if "
    "anything does not hold."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and the oracle."""
    parser.add_argument("model", help="a .py file that defines a family, or a model's config")
    parser.add_argument("--config", metavar="FILE", help="another config.json for the model")
    parser.add_argument(
        "--against", choices=("hf",), default="hf", help="the oracle: transformers (default)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check and print each finding."""
    from ..model_check import check
    from ..model_definition import define

    failed = 0
    for finding in check(define(arguments.model, arguments.config)):
        print(finding, flush=True)
        failed += not finding.holds
    print(f"{failed} do not hold" if failed else "all hold")
    return 1 if failed else 0
