# SPDX-License-Identifier: MIT
"""Programs with one collective dropped, repeated, displaced or misdirected."""

from collections.abc import Iterator
from typing import Any

import attrs

from tokenspeed_core.sharding import VerificationError
from tokenspeed_core.sharding.program import Apply, Code, Loop, Move, Program, Project
from tokenspeed_core.sharding.verify import verify


def renamed(tree: Any, old: Any, new: Any) -> Any:
    if tree is old:
        return new
    if isinstance(tree, tuple):
        return tuple(renamed(item, old, new) for item in tree)
    if isinstance(tree, (Apply, Project, Move, Loop)):
        fields = {f.name: getattr(tree, f.name) for f in attrs.fields(type(tree))}
        return type(tree)(**{name: renamed(value, old, new) for name, value in fields.items()})
    return tree


def rebuilt(program: Program, old: Code, steps: list[Any], results: tuple[Any, ...]) -> Program:
    code = attrs.evolve(old, steps=tuple(steps), results=results)
    if old is program.driver:
        return attrs.evolve(program, driver=code)
    driver = attrs.evolve(
        program.driver,
        steps=tuple(
            attrs.evolve(step, block=code) if isinstance(step, Loop) and step.block is old else step
            for step in program.driver.steps
        ),
    )
    blocks = tuple(code if block is old else block for block in program.blocks)
    return attrs.evolve(program, blocks=blocks, driver=driver)


def mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """Yield programs with one collective dropped, repeated, displaced or misdirected."""
    for code in (*program.blocks, program.driver):
        for index, step in enumerate(code.steps):
            if not isinstance(step, Move):
                continue
            label = f"{step.kind} of {step.operand.name} in {code.name}"
            before, after = list(code.steps[:index]), list(code.steps[index + 1 :])
            dropped = [renamed(s, step.result, step.operand) for s in after]
            results = renamed(code.results, step.result, step.operand)
            yield f"drop {label}", rebuilt(program, code, before + dropped, results)
            again = attrs.evolve(step.result, name="again")
            twice = attrs.evolve(step, operand=step.result, result=again)
            moved = [renamed(s, step.result, again) for s in after]
            results = renamed(code.results, step.result, again)
            yield f"repeat {label}", rebuilt(program, code, [*before, step, twice, *moved], results)
            if before:
                early = [*before[:-1], step, before[-1], *after]
                if step.operand in before[-1].results:
                    yield f"early {label}", rebuilt(program, code, early, code.results)
            if after and step.result in after[0].operands:
                late = [*before, after[0], step, *after[1:]]
                yield f"late {label}", rebuilt(program, code, late, code.results)
            for kind in (
                "all_reduce",
                "reduce_scatter",
                "all_gather",
                "all_to_all",
                "slice",
                "merge",
                "own",
            ):
                for dim in (None, 0, 1):
                    if (kind, dim) != (step.kind, step.dim):
                        source = 1 - dim if kind == "all_to_all" and dim is not None else None
                        other = attrs.evolve(step, kind=kind, dim=dim, source=source)
                        steps = [*before, other, *after]
                        yield (
                            f"{kind} {dim} for {label}",
                            rebuilt(program, code, steps, code.results),
                        )
            factors = [(factor,) for factor, _ in program.mesh.factors]
            for other_axes in {(), step.axes[:-1], step.axes[::-1], *factors} - {step.axes}:
                other = attrs.evolve(step, axes=other_axes)
                yield (
                    f"axes {other_axes} for {label}",
                    rebuilt(program, code, [*before, other, *after], code.results),
                )


def refused(program: Program) -> bool:
    try:
        verify(program)
    except VerificationError:
        return True
    return False
