# SPDX-License-Identifier: MIT
"""Errors of the modelling layer: what is wrong, on which line of the author's file, and fixes."""

from collections.abc import Sequence


class ShardingError(ValueError):
    """A model, mesh or layout cannot be given a correct parallel program."""


class AnnotationError(ShardingError):
    """A placement string does not follow the grammar, or names what does not exist."""


class MeshError(ShardingError):
    """A mesh is malformed, or a dimension does not divide over it."""


class TraceError(ShardingError):
    """An author's function does something that cannot be recorded as an equation."""


class PlacementError(ShardingError):
    """Operands meet in placements under which the op would compute a wrong number."""


class BudgetError(ShardingError):
    """A function needs more collectives than its budget allows."""


class VerificationError(RuntimeError):
    """A typed local program breaks a soundness rule; it must not run."""


def explained(
    where: object,
    what: str,
    *,
    operands: Sequence[str] = (),
    why: str = "",
    fixes: Sequence[str] = (),
) -> str:
    """Return an error text: place and fault, operands with provenance, reason, tried fixes."""
    lines = [f"{where}: {what}", *(f"  {operand}" for operand in operands)]
    if why:
        lines.append(f"  why: {why}")
    lines.extend(f"  fix {i}: {fix}" for i, fix in enumerate(fixes, 1))
    return "\n".join(lines)
