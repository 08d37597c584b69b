# SPDX-License-Identifier: MIT
"""Ops that Python operators on traced values record: sums, products."""

import operator
from typing import Any

import attrs

from .op import OPS, Op, Recorder
from .rule import Rule, rule

ADD = Op(
    "add", rule("..., ... -> ...", shard="...", linear=((0, 1),)), operator.add, text="{0} + {1}"
)
MUL = Op(
    "mul",
    rule("..., ... -> ...", shard="...", linear=((0,), (1,)), alone=((0,), (1,))),
    operator.mul,
    text="{0} * {1}",
)
SHIFT = Op("shift", rule("... -> ...", shard="..."), operator.add, text="{0} + {1}")
SCALE = Op(
    "scale",
    rule("... -> ...", shard="...", linear=((0,),), alone=((0,),)),
    operator.mul,
    text="{0} * {1}",
)
OPS.update({op.name: op for op in (ADD, MUL, SHIFT, SCALE)})

_WITH_SCALAR = {ADD.name: SHIFT, MUL.name: SCALE}


def pointwise(op: Op, left: Any, right: Any) -> Any:
    """Record `left op right`, where one side may have fewer leading dims or be a number."""
    if not isinstance(left, Recorder):
        left, right = right, left
    if not isinstance(right, Recorder):
        return left.record(_WITH_SCALAR[op.name], (left, right))
    return left.record(op, (left, right), broadcast(op.rule, left, right))


def broadcast(plain: Rule, left: Recorder, right: Recorder) -> Rule:
    """Return the rule of a pointwise op whose shorter operand matches the other's last dims."""
    ranks = [len(side.names) for side in (left, right)]
    most = max(ranks)
    factors = tuple(f".{index}" for index in range(most))
    inputs = tuple(factors[most - rank :] for rank in ranks)
    return attrs.evolve(plain, inputs=inputs, outputs=(factors,), shardable=frozenset(factors))
