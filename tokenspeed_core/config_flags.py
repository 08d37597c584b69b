# SPDX-License-Identifier: MIT
"""A command-line flag for every field of `EngineConfig`."""

import argparse
from typing import Any

import attrs

from .config import FIELDS


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and a flag for every field, grouped; a missing flag leaves no attribute."""
    parser.add_argument("model", nargs="?", default=argparse.SUPPRESS, help=_help("model"))
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings named as below")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in FIELDS.items():
        group = field.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        flag = "--" + name.replace("_", "-")
        if isinstance(field.default, bool):
            groups[group].add_argument(
                flag,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=_help(name),
            )
        else:
            groups[group].add_argument(
                flag,
                dest="model_flag" if name == "model" else name,
                default=argparse.SUPPRESS,
                metavar=_metavar(field),
                help=_help(name),
            )


def _metavar(field: "attrs.Attribute[Any]") -> str:
    if field.metadata["choices"]:
        return "{" + ",".join(field.metadata["choices"]) + "}"
    return field.metadata["metavar"] or {int: "N", float: "X", str: "TEXT"}[type(field.default)]


def _help(name: str) -> str:
    field = FIELDS[name]
    shown = "" if field.default in ("", 0) or name == "model" else f" (default: {field.default})"
    return f"{field.metadata['help']}{shown}"
