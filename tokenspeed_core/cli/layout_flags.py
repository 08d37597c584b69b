# SPDX-License-Identifier: MIT
"""The flags that say how a model is spread over ranks."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..sharding import Layout


class LayoutFlagError(ValueError):
    """A layout flag that cannot be read."""


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the group `layout`."""
    layout = parser.add_argument_group("layout")
    layout.add_argument("--tp", type=int, default=1, metavar="N", help="tensor-parallel ranks")
    layout.add_argument(
        "--sp", action="store_true", help="sequence parallelism: hidden states sharded over tp"
    )
    layout.add_argument(
        "--layout", metavar="TEXT", help='all of it on one line: "tp=8; k:tp g:; Hidden=n@tp d"'
    )
    layout.add_argument(
        "--mesh", metavar="MESH", help='named axes instead of --tp, such as "dp=2 tp=4"'
    )
    layout.add_argument(
        "--place",
        action="append",
        default=[],
        metavar="DIM=AXES",
        help="shard a dim of parameters and caches over axes; repeatable",
    )
    layout.add_argument(
        "--type",
        action="append",
        default=[],
        metavar="NAME=TYPE",
        help='a boundary type, such as "Hidden=n@tp d"; repeatable',
    )


def layout_of(arguments: argparse.Namespace) -> "Layout":
    """Return the layout that the flags ask for.

    Raises:
        LayoutFlagError: a flag is not NAME=VALUE.
        ShardingError: the mesh or a type is malformed.
    """
    from ..sharding import Layout
    from ..sharding.layout_text import parse_layout

    types = dict(_pair(text, "--type") for text in arguments.type)
    if arguments.sp:
        types.setdefault("Hidden", "n@tp d")
    place = dict(_pair(text, "--place") for text in arguments.place)
    if arguments.layout:
        return parse_layout(arguments.layout).but(place=place, types=types)
    return Layout(arguments.mesh or f"tp={arguments.tp}", place, types)


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise LayoutFlagError(f"{flag} {text!r} is not NAME=VALUE")
    return name.strip(), value.strip()
