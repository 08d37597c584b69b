# SPDX-License-Identifier: MIT
"""Factor rules: how the dims of an op's operands and results correspond, written like an einsum."""

from collections.abc import Collection

import attrs

from .error import AnnotationError
from .reduction import SUM, SUM1, SUMS, SUMSQ
from .spec import direct_sums

Factors = tuple[str, ...]


@attrs.frozen
class Rule:
    """What an op does to placements.

    `shardable` factors may be sharded, the same way on every operand that has them.  A sharded
    factor in `sums` that no result keeps leaves the results Partial(`reduce`).  `linear` lists
    groups of operand indices: the op is linear in each group while the other operands stay fixed.
    `offset` is a factor whose shard's start the kernel must know.  `constant` marks an op that
    reads its operand's shape only.  `depends` lists, for each result, the operands that it is
    computed from, where that is not all of them.  `rows` are factors that count what belongs to
    requests (tokens, rows, blocks) and point at each other: where ranks serve different requests
    they are sharded together, and the op runs on each rank's requests alone.  `routes` marks an op
    whose second operand chooses, row by row, which shards of factor `offset` compute a row: the
    others add nothing to its result.  Over shards of a factor in `merges` an op with softmax
    weights gives its first result for each shard alone, beside the logarithm of its weights' sum:
    it is Partial(lse) then, to be merged by those sums.  In each group of `alone` the op computes
    an element of its results from one element of the group, and gives 0 where that is 0: what one
    rank alone adds to stays so (sum1), though the op be not linear.  An op that `copies` gives
    elements of its linear operands as they are, so that even a sum of squares stays one.  `parts`
    are the factors, one a result, that the last factor of the only operand, their direct sum, is
    taken apart into.
    """

    inputs: tuple[Factors, ...]
    outputs: tuple[Factors, ...]
    shardable: frozenset[str]
    sums: frozenset[str] = frozenset()
    linear: tuple[tuple[int, ...], ...] = ()
    offset: str | None = None
    constant: bool = False
    depends: tuple[tuple[int, ...], ...] = ()
    rows: frozenset[str] = frozenset()
    routes: bool = False
    merges: frozenset[str] = frozenset()
    reduce: str = SUM
    alone: tuple[tuple[int, ...], ...] = ()
    copies: bool = False
    parts: tuple[str, ...] = ()

    def kept(self, group: tuple[int, ...], kinds: Collection[str]) -> str | None:
        """Return what the results owe where the operands of `group` owe `kinds`, if they may."""
        alone = group in self.alone or (self.copies and group in self.linear)
        if set(kinds) == {SUM1} and alone:
            return SUM1
        if group not in self.linear or not SUMS.issuperset(kinds):
            return None
        return SUMSQ if set(kinds) == {SUMSQ} and self.copies else SUM

    def __str__(self) -> str:
        sides = (self.inputs, self.outputs)
        return " -> ".join(", ".join(" ".join(names) for names in side) for side in sides)

    def expanded(self, ranks: tuple[int, ...]) -> "Rule":
        """Return the rule for operands of these ranks, with `...` replaced by numbered factors."""
        if not any("..." in factors for factors in self.inputs):
            return self
        extra = max(
            rank - len(factors) + 1
            for rank, factors in zip(ranks, self.inputs, strict=True)
            if "..." in factors
        )
        dots = tuple(f".{index}" for index in range(extra))

        def expand(factors: Factors) -> Factors:
            at = factors.index("...") if "..." in factors else len(factors)
            return (*factors[:at], *(dots if at < len(factors) else ()), *factors[at + 1 :])

        shardable, sums = (
            each - {"..."} | (set(dots) if "..." in each else set())
            for each in (self.shardable, self.sums)
        )
        return attrs.evolve(
            self,
            inputs=tuple(map(expand, self.inputs)),
            outputs=tuple(map(expand, self.outputs)),
            shardable=shardable,
            sums=sums,
        )


def rule(
    text: str,
    *,
    shard: str = "",
    sums: str = "",
    linear: tuple[tuple[int, ...], ...] = (),
    offset: str | None = None,
    constant: bool = False,
    depends: tuple[tuple[int, ...], ...] = (),
    rows: str = "",
    routes: bool = False,
    merges: str = "",
    reduce: str = SUM,
    alone: tuple[tuple[int, ...], ...] = (),
    copies: bool = False,
) -> Rule:
    """Read a rule such as `"n, v d -> n d"`; `shard`, `sums`, `rows` are lists of factors."""
    left, arrow, right = direct_sums(text).partition("->")
    if not arrow:
        raise AnnotationError(f"rule {text!r} has no '->'")
    inputs, outputs = (
        tuple(tuple(part.split()) for part in side.split(",")) for side in (left, right)
    )
    return Rule(
        inputs,
        outputs,
        frozenset(shard.split()),
        frozenset(sums.split()),
        linear,
        offset,
        constant,
        depends,
        frozenset(rows.split()),
        routes,
        frozenset(merges.split()),
        reduce,
        alone,
        copies,
    )


def contraction(text: str) -> Rule:
    """Return the rule of `einsum(text, ...)`: every factor shards, contracted ones leave a sum."""
    plain = rule(text)
    kept = {factor for factors in plain.outputs for factor in factors}
    every = {factor for factors in plain.inputs for factor in factors}
    if len(plain.outputs) != 1 or not kept <= every:
        raise AnnotationError(f"einsum {text!r}: results may only have the operands' dims")
    return attrs.evolve(
        plain,
        shardable=frozenset(every),
        sums=frozenset(every - kept),
        linear=tuple((index,) for index in range(len(plain.inputs))),
    )


def parting(segments: tuple[str, ...]) -> Rule:
    """Return the rule that takes the last dim apart, `"... g__u -> ... g, ... u"`."""
    outputs = tuple(("...", each) for each in segments)
    joint = "__".join(segments)
    return Rule(
        (("...", joint),),
        outputs,
        frozenset(("...", joint)),
        linear=((0,),),
        copies=True,
        parts=segments,
    )
