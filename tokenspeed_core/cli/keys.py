# SPDX-License-Identifier: MIT
"""`tokenspeed keys`: keys for an engine that clients reach over the network."""

import argparse

HELP = "make CURVE keys for --bind tcp://..."
DESCRIPTION = (
    "Write the keys of an engine to FILE, for `serve --bind ENDPOINT --curve-keys FILE`, and what "
    "clients need to FILE.client, for `Client(RemoteEngine.read(FILE.client))`; both are secret."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the file and the endpoint."""
    parser.add_argument("file", help="a file that is not there yet")
    parser.add_argument("endpoint", help="where clients reach the engine: tcp://HOST:PORT")


def run(arguments: argparse.Namespace) -> int:
    """Make the keys and print the names of both files."""
    from ..ipc.remote_engine import CurveKeys

    CurveKeys.create(arguments.file, arguments.endpoint)
    print(f"{arguments.file}\n{arguments.file}.client")
    return 0
