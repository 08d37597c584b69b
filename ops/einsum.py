# SPDX-License-Identifier: MIT
"""Contractions over named dims, and the projections that a compiled plan makes of them."""

import math
import string
from functools import cache

import torch
from torch import Tensor

from ..kernels.float8 import Matrix, linear_op
from ..sharding.alternative import relabelled
from ..sharding.error import AnnotationError, TraceError, explained
from ..sharding.fix import Fix
from ..sharding.line import author_line
from ..sharding.op import OPS, Op, Recorder, dispatch
from ..sharding.rule import contraction
from ..sharding.value import Value
from .kernel import kernel


@cache
def _letters(equation: str) -> str:
    """Return a torch equation for one of whole words."""
    words = sorted(set(equation.replace(",", " ").replace("->", " ").split()))
    letter = dict(zip(words, string.ascii_letters, strict=False))
    left, _, right = equation.partition("->")
    sides = ("".join(letter[word] for word in part.split()) for part in left.split(","))
    return f"{','.join(sides)}->{''.join(letter[word] for word in right.split())}"


def _run(equation: str, *operands: Tensor) -> Tensor:
    return torch.einsum(_letters(equation), *operands)


_CONTRACTION = Op("einsum", contraction("n i, o i -> n o"), _run)
OPS["einsum"] = _CONTRACTION


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Contract tensors over named dims, `einsum("n d, d k h -> n k h", x, w)`.

    Raises:
        AnnotationError: the equation is none.
        TraceError: a label is not the name of the dim it stands for.
    """
    try:
        rule = contraction(equation)
    except AnnotationError as error:
        fixes = relabelled(equation, [getattr(each, "names", ()) for each in operands])
        fixes = fixes or [Fix("write 'n d, d f -> n f': dims of each operand, then the result's")]
        raise AnnotationError(explained(author_line(), str(error), fixes=fixes)) from None
    for factors, operand in zip(rule.inputs, operands, strict=True):
        if isinstance(operand, Value) and factors != operand.names:
            raise TraceError(
                explained(
                    author_line(),
                    f"einsum {equation!r} reads {operand!r} as '{' '.join(factors)}'",
                    why="dims of equal size but other meaning would be contracted",
                    fixes=[
                        *relabelled(equation, [getattr(each, "names", ()) for each in operands]),
                        f"write '{' '.join(operand.names)}' for this operand",
                    ],
                )
            )
    result: Tensor = dispatch(_CONTRACTION, (equation, *operands), {}, rule)
    return result


def linear(x: Tensor, w: Matrix) -> Tensor:
    """Return `y[n,o] = sum_i x[n,i] w[o,i]`."""
    if isinstance(x, Recorder):
        result: Tensor = x.record(_LINEAR, (x, w))
        return result
    y: Tensor = kernel(linear_op(w), x)(x, w)
    return y


def split(y: Tensor, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Return the consecutive columns of `y[n,o]` as views of shapes `[n, *shape]`."""
    if isinstance(y, Recorder):
        parts: tuple[Tensor, ...] = y.record(_SPLIT, (y, *shapes))
        return parts
    columns = y.split_with_sizes(_widths(shapes), 1)
    return tuple(
        part if len(shape) == 1 else part.view(part.shape[0], *shape)
        for part, shape in zip(columns, shapes, strict=True)
    )


@cache
def _widths(shapes: tuple[tuple[int, ...], ...]) -> list[int]:
    return [math.prod(shape) for shape in shapes]


# Only compiled plans call these two, so their rules are never asked for a placement.
_LINEAR = OPS["linear"] = Op("linear", contraction("n i, o i -> n o"), linear)
_SPLIT = OPS["split"] = Op("split", contraction("n o -> n o"), split)
