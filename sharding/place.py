# SPDX-License-Identifier: MIT
"""`place`: a value in the placement that its author wants at this point."""

import sys
from typing import TypeVar

from .line import line_of
from .spec import Placement, parse_spec
from .value import Value

T = TypeVar("T")


def place(x: T, spec: str) -> T:
    """Return `x` moved to a placement such as `"n@tp d"`; on a plain tensor, `x` itself.

    Raises:
        AnnotationError: `spec` is not in the grammar.
        TraceError: `spec` names other dims than `x` has.
    """
    if not isinstance(x, Value):
        return x
    placement = Placement(parse_spec(spec), None, line_of(sys._getframe(1)))
    return x.pinned(placement, None)  # type: ignore[return-value]
