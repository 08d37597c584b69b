# SPDX-License-Identifier: MIT
"""The fusing rewrite: a sum and the norm of it become one op."""

import attrs

from .op import OPS
from .program import Apply, Code, Loop, Program, Step, Var


def fuse(program: Program) -> Program:
    """Return `program` with each add that feeds a norm computed by the norm's fused form."""
    blocks = {id(code): _fused(code, {}) for code in program.blocks}
    driver = _fused(program.driver, blocks)
    return attrs.evolve(program, blocks=tuple(blocks.values()), driver=driver)


def _fused(code: Code, blocks: dict[int, Code]) -> Code:
    norms: dict[Var, Apply] = {}
    for step in code.steps:
        if isinstance(step, Apply) and step.op.after_add:
            norms.setdefault(step.operands[0], step)
    steps: list[Step] = []
    absorbed: set[int] = set()
    for step in code.steps:
        if isinstance(step, Loop):
            step = attrs.evolve(step, block=blocks[id(step.block)])
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
