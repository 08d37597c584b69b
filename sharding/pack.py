# SPDX-License-Identifier: MIT
"""The packing rewrite: sibling contractions of one activation become one stationary operand."""

import attrs
import torch

from .program import Apply, Code, Loop, Program, Project, Step, Var


def pack(program: Program) -> Program:
    """Return `program` with its projections grouped; types and order of effects are unchanged."""
    blocks = {id(code): _packed(code, {}) for code in program.blocks}
    driver = _packed(program.driver, blocks)
    return attrs.evolve(program, blocks=tuple(blocks.values()), driver=driver)


def _packed(code: Code, blocks: dict[int, Code]) -> Code:
    siblings: dict[tuple[Var, tuple[str, ...], torch.dtype], list[Apply]] = {}
    for step in code.steps:
        if isinstance(step, Apply) and (shared := contracted(step)):
            x, w = step.operands
            siblings.setdefault((x, shared, w.dtype), []).append(step)
    first = {id(group[0]): group for group in siblings.values()}
    absorbed = {id(step) for group in siblings.values() for step in group[1:]}
    steps: list[Step] = []
    for step in code.steps:
        if id(step) in first:
            group = tuple(first[id(step)])
            steps.append(Project(group, pack_name([apply.operands[1].name for apply in group])))
        elif isinstance(step, Loop):
            steps.append(attrs.evolve(step, block=blocks[id(step.block)]))
        elif id(step) not in absorbed:
            steps.append(step)
    return attrs.evolve(code, steps=tuple(steps))


def contracted(apply: Apply) -> tuple[str, ...]:
    """Return the contracted dims if a step is `rows @ parameter`, else nothing.

    That is: an einsum of an activation with a parameter, no dim shared by both and the result,
    the activation's dims being one row dim and then the contracted ones, the result's the row
    dim and then the parameter's remaining ones in any order.
    """
    if apply.op.name != "einsum" or len(apply.operands) != 2:
        return ()
    x, w = apply.operands
    (left, right), (out,) = apply.rule.inputs, apply.rule.outputs
    shared = tuple(factor for factor in left if factor in right)
    if w.kind != "param" or x.kind == "param" or left != (left[0], *shared) or not shared:
        return ()
    if out[:1] != left[:1] or sorted(out[1:]) != sorted(set(right) - set(shared)):
        return ()
    return shared


def pack_name(paths: list[str]) -> str:
    """Return `attn.wq_wk_wv` for `attn.wq`, `attn.wk`, `attn.wv`."""
    first, *rest = paths
    prefix = first.rpartition(".")[0]
    if any(path.rpartition(".")[0] != prefix for path in rest):
        return "_".join(path.replace(".", "_") for path in paths)
    names = "_".join(path.rpartition(".")[2] for path in paths)
    return f"{prefix}.{names}" if prefix else names
