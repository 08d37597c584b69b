# SPDX-License-Identifier: MIT
"""The fusing rewrite: a sum and the norm of it become one op, or the sum its projection's part."""

from collections.abc import Collection
from typing import TypeGuard

import attrs

from .composite import sums
from .op import OPS
from .pack import contracted
from .pointwise import ADD
from .program import Apply, Code, Loop, Move, Program, Step, Var
from .rule import Rule


def fuse(program: Program, offered: Collection[str] = ()) -> Program:
    """Return `program` with each add that feeds a norm computed by the norm's fused form.

    Where composites are `offered` that add what they compute, a sum of such an update, of which
    nothing is owed, is a step of its own, before the norm of it.
    """
    blocks = {id(code): _fused(code, {}, offered) for code in program.blocks}
    driver = _fused(program.driver, blocks, offered)
    return attrs.evolve(program, blocks=tuple(blocks.values()), driver=driver)


def _fused(code: Code, blocks: dict[int, Code], offered: Collection[str]) -> Code:
    norms: dict[Var, Apply] = {}
    for step in code.steps:
        if isinstance(step, Apply) and step.op.after_add:
            norms.setdefault(step.operands[0], step)
    updates = addable(code, offered)
    steps: list[Step] = []
    absorbed: set[int] = set()
    for step in code.steps:
        if isinstance(step, Loop):
            step = attrs.evolve(step, block=blocks[id(step.block)])
        elif isinstance(step, Apply) and updates.intersection(step.operands[:2]) and is_sum(step):
            if step.op.name != ADD.name:
                steps.append(sum_of(step))
                step = norm_of(step)
        elif isinstance(step, Apply) and step.op.name == "add":
            norm = norms.get(step.results[0])
            # Only a stored weight is sure to be there already where the add stands.
            stored = norm is not None and all(var.kind == "param" for var in norm.operands[1:])
            if norm is not None and stored and step.rule.inputs[0] == step.rule.inputs[1]:
                absorbed.add(id(norm))
                step = _joint(step, norm)
        if id(step) not in absorbed:
            steps.append(step)
    return attrs.evolve(code, steps=tuple(steps))


def is_sum(step: Step) -> TypeGuard[Apply]:
    """Return whether a step adds, perhaps with a norm, values of one type; nothing may be owed."""
    fused = {op.after_add for op in OPS.values()} - {""}
    return isinstance(step, Apply) and step.op.name in (ADD.name, *fused) and sums(step)


def addable(code: Code, offered: Collection[str]) -> set[Var]:
    """Return results, read once at most, of what a composite on offer can compute and add.

    That is: a projection that is alone in taking its value, or experts.
    """
    readers = code.readers
    found = set[Var]()
    for step in code.steps:
        if not isinstance(step, Apply) or len(readers.get(step.results[0], ())) > 1:
            continue
        if contracted(step) and "linear_add" in offered:
            taken = [s for s in readers[step.operands[0]] if isinstance(s, Apply)]
            if sum(bool(contracted(each)) for each in taken) == 1:
                found.add(step.results[0])
        if step.op.name == "experts" and "norm_moe_add" in offered:
            found.add(step.results[0])
    return found


def unfuse(program: Program, offered: Collection[str]) -> Program:
    """Return `program` with the sum and the norm apart where a reduction pays one of its terms.

    That is where a composite on offer reduces and adds: the norm may then join its projection.
    """
    if "all_reduce_add" not in offered:
        return program
    blocks = {id(code): _unfused(code, {}) for code in program.blocks}
    driver = _unfused(program.driver, blocks)
    return attrs.evolve(program, blocks=tuple(blocks.values()), driver=driver)


def _unfused(code: Code, blocks: dict[int, Code]) -> Code:
    paid: set[Var] = set()
    steps: list[Step] = []
    for step in code.steps:
        if isinstance(step, Loop):
            steps.append(attrs.evolve(step, block=blocks[id(step.block)]))
        elif is_sum(step) and step.op.name != ADD.name and paid.intersection(step.operands[:2]):
            steps += (sum_of(step), norm_of(step))
        else:
            steps.append(step)
        if isinstance(step, Move) and step.kind == "all_reduce":
            paid.add(step.result)
    return attrs.evolve(code, steps=tuple(steps))


def _joint(add: Apply, norm: Apply) -> Apply:
    """Return the op that yields the norm of a sum, and the sum."""
    op = OPS[norm.op.after_add]
    residual, update = add.operands
    operands = (update, residual, *norm.operands[1:])
    rule = op.rule.expanded(tuple(len(var.spec.dims) for var in operands))
    return Apply(
        op,
        rule,
        (update, residual, *norm.args[1:]),
        operands,
        (),
        (norm.results[0], add.results[0]),
        norm.line,
        norm.regions,
    )


def sum_of(step: Apply) -> Apply:
    """Return the add in an op that yields the norm of a sum, and the sum."""
    update, residual = step.operands[:2]
    return added(residual, update, step.results[1], step)


def norm_of(step: Apply) -> Apply:
    """Return the norm in an op that yields the norm of a sum, and the sum: of the sum alone."""
    norm = next(op for op in OPS.values() if op.after_add == step.op.name)
    normed, total = step.results
    operands = (total, *step.operands[2:])
    rule = norm.rule.expanded(tuple(len(var.spec.dims) for var in operands))
    args = (total, *step.args[2:])
    return Apply(norm, rule, args, operands, (), (normed,), step.line, step.regions)


def added(left: Var, right: Var, result: Var, where: Apply) -> Apply:
    """Return `result = left + right` of values of one type, as written at `where`."""
    every = tuple(f".{index}" for index in range(len(left.spec.dims)))
    rule = Rule((every, every), (every,), frozenset(every), linear=ADD.rule.linear)
    pair = (left, right)
    return Apply(ADD, rule, pair, pair, (), (result,), where.line, where.regions)
