# SPDX-License-Identifier: MIT
"""Errors of the modelling layer: what is wrong, on which line of the author's file, and fixes."""

from collections.abc import Sequence

from .fix import Fix


class ShardingError(ValueError):
    """A model, mesh or layout cannot be given a correct parallel program."""

    @property
    def fixes(self) -> tuple[Fix, ...]:
        """Return what would make the program type-check, the likeliest first."""
        found: tuple[Fix, ...] = getattr(self.args[0] if self.args else "", "fixes", ())
        return found


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


class Explanation(str):
    """The text of an error, with its fixes as values."""

    fixes: tuple[Fix, ...] = ()


def explained(
    where: object,
    what: str,
    *,
    operands: Sequence[str] = (),
    why: str = "",
    fixes: Sequence[str | Fix] = (),
) -> Explanation:
    """Return an error text: place and fault, operands with provenance, reason, tried fixes."""
    lines = [f"{where}: {what}", *(f"  {operand}" for operand in operands)]
    if why:
        lines.append(f"  why: {why}")
    lines.extend(f"  fix {i}: {fix}" for i, fix in enumerate(fixes, 1))
    text = Explanation("\n".join(lines))
    text.fixes = tuple(fix if isinstance(fix, Fix) else Fix(fix) for fix in fixes)
    return text
