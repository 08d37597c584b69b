# SPDX-License-Identifier: MIT
"""Budgets: the most collectives that an `@spmd` function may need."""

from collections.abc import Sequence

import attrs

from .error import AnnotationError, BudgetError, explained
from .program import Apply, Code, Move, Program, Project, Var

# What a collective counts, in all-reduces: a layout that splits one in two pays the same.
UNITS = {
    "all_reduce": 1.0,
    "reduce_scatter": 0.5,
    "all_gather": 0.5,
    "merge": 0.0,
    "all_to_all": 0.5,
    "dispatch": 0.5,
    "combine": 0.5,
    "slice": 0.0,
    "own": 0.0,
}


@attrs.frozen
class Budget:
    """The most collectives a function may need along an axis, in units of one all-reduce."""

    all_reduce: float


def parse_budget(text: str) -> Budget:
    """Parse `all_reduce<=N`.

    Raises:
        AnnotationError: another form.
    """
    name, _, count = text.partition("<=")
    if name.strip() != "all_reduce" or not count.strip().isdigit():
        raise AnnotationError(f"budget {text!r} is not of the form 'all_reduce<=N'")
    return Budget(float(count))


def check_budgets(program: Program) -> None:
    """Refuse a program in which a function exceeds its budget.

    A reduction counts for the function that left the sum owed, wherever it is paid; a gather for
    the function that asked for it.  What a cache that is sharded by slot costs, the gather of its
    queries and the merge, is a choice of the layout, not of the function.  Collectives over
    different axes are of different ranks: what counts is the axis with the most.

    Raises:
        BudgetError: naming the function and each collective.
    """
    for code in (*program.blocks, program.driver):
        owners = _owners(code)
        queries = {
            var
            for step in code.steps
            if isinstance(step, Apply) and step.share()
            for var in step.operands
        }
        for regions, limit in code.budgets:
            spent = [
                step
                for step in code.steps
                if isinstance(step, Move)
                and UNITS[step.kind]
                and not step.joins
                and step.result not in queries
                and owners[step][: len(regions)] == regions
            ]
            total = max(_units(spent, code).values(), default=0.0)
            if total > limit:
                raise BudgetError(
                    explained(
                        spent[-1].line,
                        f"{regions[-1]} needs {total:g} all-reduces, its budget is {limit:g}",
                        operands=[
                            f"{step.kind} of {step.operand} at {step.line}: {step.why}"
                            for step in spent
                        ],
                        fixes=[
                            "place its parameters so that consecutive ops agree",
                            "raise the budget",
                        ],
                    )
                )


def _units(spent: Sequence[Move], code: Code) -> dict[str, float]:
    """Return what collectives count along each axis.

    A sum of which every rank keeps a part along an axis was scattered along it.
    """
    units: dict[str, float] = {}
    for move in spent:
        kept = {
            axis
            for step in code.readers.get(move.result, ())
            if isinstance(step, Move) and step.kind == "slice"
            for axis in step.axes
        }
        for axis in move.axes:
            scattered = move.kind == "all_reduce" and axis in kept
            unit = UNITS["reduce_scatter" if scattered else move.kind]
            units[axis] = units.get(axis, 0.0) + unit
    return units


def _owners(code: Code) -> dict[Move, tuple[str, ...]]:
    made: dict[Var, tuple[str, ...]] = {}
    owners: dict[Move, tuple[str, ...]] = {}
    for step in code.steps:
        for apply in step.applies if isinstance(step, Project) else (step,):
            if isinstance(apply, Apply):
                made.update(dict.fromkeys(apply.results, apply.regions))
        if isinstance(step, Move):
            pays = step.kind in ("all_reduce", "reduce_scatter", "combine", "merge")
            owners[step] = made.get(step.operand, ()) if pays else step.regions
            made[step.result] = owners[step]
    return owners
