# SPDX-License-Identifier: MIT
"""The carrying rewrite: layers hand on the sum of two values where all read only their sum.

A residual stream is written as a pair, the residual and the last update, so that an update may
stay owed until it is added.  Where nothing is owed and a composite adds each update as it computes
it, the sum is carried, and no op is left between two layers.
"""

from collections.abc import Collection
from typing import Any, TypeGuard

import attrs

from .fuse import addable, added, is_sum, norm_of
from .program import Apply, Code, Loop, Program, Step, Var
from .propagate import live


@attrs.frozen(eq=False)
class Meeting:
    """Where two values are read only as their sum: by `add`, of each or of what `taken` takes."""

    add: Apply
    taken: tuple[Apply, ...]

    @property
    def total(self) -> Var:
        return self.add.results[-1]

    def entry(self) -> Var:
        """Return the variable to carry in place of the two."""
        if not self.taken:
            return self.total
        (var,) = self.taken[0].operands[:1]
        return attrs.evolve(var, name=f"{var.name}_sum")

    def rewritten(self, step: Step, entry: Var) -> tuple[Step, ...]:
        """Return what stands for a step where `entry` is their sum."""
        if step is self.add:
            return () if step.op.name == "add" else (norm_of(self.add),)
        if self.taken and step is self.taken[0]:
            (old,) = step.operands[:1]
            (args, operands) = (_put(part, old, entry) for part in (step.args, step.operands))
            return (attrs.evolve(step, args=args, operands=operands, results=(self.total,)),)
        return () if step in self.taken else (step,)


def carry_sums(program: Program, offered: Collection[str]) -> Program:
    """Return `program` with each chain of loops carrying a sum whose updates a composite adds."""
    driver = program.driver
    chains: list[list[Loop]] = []
    for step in driver.steps:
        if isinstance(step, Loop):
            if chains and step.carry == chains[-1][-1].results:
                chains[-1].append(step)
            else:
                chains.append([step])
    for chain in chains:
        program = _carried(program, tuple(chain), offered)
    return program


def _carried(program: Program, chain: tuple[Loop, ...], offered: Collection[str]) -> Program:
    driver = program.driver
    blocks = {id(loop.block): _block(loop.block, offered) for loop in chain}
    entered = chain[0].carry
    after = _meeting(driver, chain[-1].results) if len(entered) == 2 else None
    others = [step for step in driver.steps if isinstance(step, Loop) and step not in chain]
    shared = any(id(loop.block) in blocks for loop in others)
    if after is None or shared or any(block is None for block in blocks.values()):
        return program
    made = {var: step for step in driver.steps for var in step.results}
    zeros = [var for var in entered if _is_zeros(made.get(var))]
    steps: list[Step] = []
    exit_ = after.entry()
    current = entered[0]
    for step in driver.steps:
        if step not in chain:
            steps.extend(after.rewritten(step, exit_))
            continue
        block = blocks[id(step.block)]
        assert block is not None
        assert isinstance(step, Loop)
        if step is chain[0]:
            if zeros:
                (current,) = [var for var in entered if var is not zeros[0]]
            else:
                current = attrs.evolve(entered[0], name=f"{entered[0].name}_sum")
                steps.append(added(entered[0], entered[1], current, after.add))
        last = step is chain[-1]
        result = exit_ if last else attrs.evolve(exit_, name=step.results[0].name)
        steps.append(attrs.evolve(step, block=block, carry=(current,), results=(result,)))
        current = result
    kept = live(steps, (*driver.results, *driver.cache_results))
    return attrs.evolve(
        program,
        blocks=tuple(blocks.get(id(code)) or code for code in program.blocks),
        driver=attrs.evolve(driver, steps=kept),
    )


def _block(code: Code, offered: Collection[str]) -> Code | None:
    """Return a layer that takes and hands on the sum of its two carries, if it can."""
    if len(code.carry) != 2:
        return None
    meeting = _meeting(code, code.carry)
    left, right = code.results
    if meeting is None or meeting.taken or left is right:
        return None
    lone = addable(code, offered) & {left, right}
    if len(lone) != 1 or any(var.spec.partial for var in code.results):
        return None
    (update,) = lone
    (residual,) = {left, right} - lone
    if code.readers.get(update) or update in code.carry:
        return None
    made = next(step for step in code.steps if update in step.results)
    assert isinstance(made, Apply)
    total = attrs.evolve(residual, name=f"{residual.name}_sum", line=made.line)
    steps = [new for step in code.steps for new in meeting.rewritten(step, meeting.total)]
    steps.append(added(residual, update, total, made))
    return attrs.evolve(code, carry=(meeting.total,), steps=tuple(steps), results=(total,))


def _meeting(code: Code, pair: tuple[Var, ...]) -> Meeting | None:
    """Return where two values of one type, neither owed, meet in a sum that alone reads them."""
    readers = code.readers
    read = [readers.get(var, []) for var in pair]
    if any(len(steps) != 1 for steps in read) or set(pair) & set(code.results):
        return None
    first, second = read[0][0], read[1][0]
    if first is second:
        return Meeting(first, ()) if _adds(first, pair) else None
    if not (isinstance(first, Apply) and isinstance(second, Apply)):
        return None
    alike = first.op is second.op and first.rule == second.rule and (0,) in first.rule.linear
    if not alike or first.args[0] is not pair[0] or second.args[0] is not pair[1]:
        return None
    if first.args[1:] != second.args[1:] or len(first.results) != 1:
        return None
    last = readers.get(first.results[0], [])
    made = (first.results[0], second.results[0])
    if len(last) != 1 or readers.get(made[1], []) != last or set(made) & set(code.results):
        return None
    return Meeting(last[0], (first, second)) if _adds(last[0], made) else None


def _adds(step: Step, pair: tuple[Var, ...]) -> TypeGuard[Apply]:
    return isinstance(step, Apply) and is_sum(step) and set(step.operands[:2]) == set(pair)


def _is_zeros(step: Step | None) -> bool:
    return isinstance(step, Apply) and step.op.name == "zeros_like"


def _put(parts: tuple[Any, ...], old: Var, new: Var) -> tuple[Any, ...]:
    return tuple(new if part is old else part for part in parts)
