# SPDX-License-Identifier: MIT
"""A setting's default, type, range and help, in one line of `EngineConfig`."""

import math
import re
from typing import Any

import attrs

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


class ConfigError(ValueError):
    """A setting has an unknown name, a wrong type or a value out of range."""


def size_in_bytes(value: Any) -> Any:
    """Read "2GiB", "500MB" or a plain number of bytes."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        return value
    unit = 1024 if match[3] else 1000
    return int(float(match[1]) * unit ** " KMGT".index(match[2].upper() or " "))


def option(
    default: Any,
    group: str,
    help: str,
    *,
    low: float | None = None,
    high: float = math.inf,
    choices: tuple[str, ...] = (),
    metavar: str | None = None,
    converter: Any = None,
) -> Any:
    """Return an attrs field that takes values of the default's type, in `choices` or low..high."""
    kind = type(default)

    def check(_: Any, field: "attrs.Attribute[Any]", value: Any) -> None:
        wanted = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{field.name} must be {wanted[kind]}, got {value!r}")
        if low is not None and not low <= value <= high:
            top = "" if high == math.inf else f" and at most {high:g}"
            raise ConfigError(f"{field.name} must be at least {low:g}{top}, got {value!r}")
        if choices and value not in choices:
            raise ConfigError(f"{field.name} must be one of {', '.join(choices)}, got {value!r}")

    metadata = {"group": group, "help": help, "choices": choices, "metavar": metavar}
    return attrs.field(default=default, validator=check, converter=converter, metadata=metadata)
