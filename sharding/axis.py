# SPDX-License-Identifier: MIT
"""One mesh axis: the state of an op's operands and results along it, by the op's own rule."""

import attrs

from .program import Apply
from .rule import Rule, contraction, parting
from .spec import Spec

REPLICATED, PARTIAL = "R", "P"


def state_of(factors: tuple[str, ...], spec: Spec, axis: str) -> str:
    """Return R, P, or the factor that is sharded over `axis`."""
    if axis in spec.partial:
        return PARTIAL
    for factor, dim in zip(factors, spec.dims, strict=True):
        if axis in dim.axes:
            return factor
    return REPLICATED


def sharded_result(rule: Rule, index: int, factor: str) -> str:
    """Return the state of result `index` where the operands' `factor` is sharded."""
    depends = rule.depends[index] if rule.depends else range(len(rule.inputs))
    if factor in rule.outputs[index]:
        return factor
    if rule.parts and factor == rule.inputs[0][-1]:
        return rule.parts[index]
    if factor in rule.merges:
        return PARTIAL if index == 0 else REPLICATED
    if not any(factor in rule.inputs[operand] for operand in depends):
        return REPLICATED
    return PARTIAL if factor in rule.sums else "not defined"


def own_rule(apply: Apply) -> Rule:
    """Return the rule of an op on operands of these ranks, from its registration alone."""
    ranks = tuple(len(var.spec.dims) for var in apply.operands)
    if apply.op.name == "einsum":
        return contraction(str(apply.args[0]))
    if apply.op.name == "parts":
        return parting(apply.operands[0].spec.dims[-1].segments).expanded(ranks)
    if apply.op.text and len(ranks) == 2:  # a pointwise operator: dims match from the last
        every = tuple(f".{index}" for index in range(max(ranks)))
        inputs = tuple(every[len(every) - rank :] for rank in ranks)
        return attrs.evolve(
            apply.op.rule, inputs=inputs, outputs=(every,), shardable=frozenset(every)
        )
    return apply.op.rule.expanded(ranks)
