# SPDX-License-Identifier: MIT
"""Plan tables: a model's plans by how many tokens a step has."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import Self

import attrs

from .collective_table import collectives, total
from .draft import Draft
from .link import Links
from .overlap import PIPELINED
from .plan import Plan, RankPlan
from .program import Loop, Move, Program
from .way import Offer, Way, experts_text, rows_text

SMALLEST = 16  # tokens: below, steps differ by nothing that a choice depends on


@attrs.frozen(kw_only=True, eq=False, slots=False)
class PlanTable:
    """Plan i runs steps of `starts[i]` tokens and more, up to the next one's; the first is 0.

    Tokens are those of all ranks together.  Plans differ in their programs only: how rows lie and
    reach their experts, what starts early, what is pipelined.  Packs, caches and groups are the
    first's.  Plan i runs steps in way i.
    """

    starts: tuple[int, ...]
    plans: tuple[RankPlan, ...]
    ways: tuple[Way, ...]

    @property
    def first(self) -> RankPlan:
        """The plan of the smallest steps."""
        return self.plans[0]

    def index(self, tokens: int) -> int:
        """Return which plan runs steps of so many tokens."""
        return bisect_right(self.starts, tokens) - 1

    def of_rank(self, rank: int) -> Self:
        """Return the table of this rank's stage of a pipeline."""
        return attrs.evolve(self, plans=tuple(plan.of_rank(rank) for plan in self.plans))

    @cached_property
    def hash(self) -> str:
        """Return a digest that ranks compare, of all programs and where each begins."""
        parts = [self.first.hash]
        for start, plan in zip(self.starts[1:], self.plans[1:], strict=True):
            parts += [str(start), plan.source]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts[1:] else parts[0]


@attrs.frozen(kw_only=True, eq=False)
class TypedPlanTable(PlanTable):
    """A plan table with the typed program of each plan.

    `offers` are the ways that were priced for each plan, in steps of the last size that it is for.
    """

    plans: tuple[Plan, ...]
    offers: tuple[tuple[Offer, ...], ...]


def sizes_text(table: TypedPlanTable, most: int, links: Links) -> str:
    """Return a paragraph for each plan: the steps it runs, what is done for them, their totals.

    Totals are for its largest step, of up to `most` tokens, that has as many rows of logits.
    """
    lines = []
    for index, (start, plan) in enumerate(zip(table.starts, table.plans, strict=True)):
        last = table.starts[index + 1] - 1 if index + 1 < len(table.starts) else most
        found = tuple(collectives(plan.program, {"n": last, "m": last}, links))
        codes = (*plan.program.blocks, plan.program.driver)
        moves = [step for code in codes for step in code.steps if isinstance(step, Move)]
        counts = {
            "started early": sum(move.started for move in moves),
            "sent to the ranks of their experts": sum(move.kind == "dispatch" for move in moves),
            "pipelined with a product": sum(
                each.name in PIPELINED for code in codes for each in code.composites
            ),
        }
        done = [f"{count} {what}" for what, count in counts.items() if count]
        lines.append(f"steps of {start or 1} to {last} tokens, plan {plan.hash[:12]}")
        lines += _offers_text(table, index, links)
        lines.append(f"  of all functions' collectives: {', '.join(done) or 'none apart'}")
        lines.append(f"  a step of {last}: {total(found)}")
    return "\n".join(lines)


def _offers_text(table: TypedPlanTable, index: int, links: Links) -> Iterator[str]:
    """Yield a line for each way that was priced, the chosen one marked."""
    mesh, offers = table.first.mesh, table.offers[index]
    rows = []
    for offer in offers:
        experts = experts_text(offer.program)
        said = f"rows {rows_text(offer.way, mesh)}{f', of experts {experts}' if experts else ''}"
        rows.append((said, f"{offer.us:.1f}", f"{offer.collectives_us:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for offer, (said, us, moved) in zip(offers, rows, strict=True):
        mark = "*" if offer.way == table.ways[index] else " "
        yield (
            f"  {mark} {said.ljust(widths[0])}  {us.rjust(widths[1])} us, "
            f"{moved.rjust(widths[2])} of them collectives"
        )


def step_sizes(most: int) -> tuple[int, ...]:
    """Return the sizes of steps, in tokens, for which choices are priced: powers of two."""
    sizes = [SMALLEST]
    while sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    return tuple(sizes)


def priced_size(tokens: int) -> int:
    """Return the size of `step_sizes` as which a step of so many tokens is priced."""
    return step_sizes(tokens)[-1]


def build_table(draft: Draft, most: int) -> TypedPlanTable:
    """Compile a draft for steps of up to `most` tokens, all ranks together.

    A step is priced as the smallest of `step_sizes` that holds it; sizes side by side that get one
    program have one plan.

    Raises:
        ShardingError: a function exceeds its budget.
    """
    starts: list[int] = []
    plans: list[Plan] = []
    ways: list[Way] = []
    offers: list[tuple[Offer, ...]] = []
    known: list[object] = []
    start = 0
    for size in step_sizes(most):
        best, priced = draft.best(size)
        choices = [best.way, *_choices(best.program)]
        if choices != known:
            starts.append(start)
            plans.append(draft.plan(best.program))
            ways.append(best.way)
            offers.append(priced)
            known = choices
        offers[-1] = priced
        start = size + 1
    groups = {axes: ranks for plan in plans for axes, ranks in plan.groups.items()}
    return TypedPlanTable(
        starts=tuple(starts),
        plans=tuple(attrs.evolve(plan, groups=groups) for plan in plans),
        ways=tuple(ways),
        offers=tuple(offers),
    )


def _choices(program: Program) -> Iterator[object]:
    """Yield what tells the programs of one draft apart."""
    for code in program.functions:
        for step in code.steps:
            if isinstance(step, Move):
                yield step.kind, step.result.name, step.started, step.joins
            elif not isinstance(step, Loop):
                yield tuple(var.name for var in step.results)
        for composite in code.composites:
            yield composite.name, [var.name for var in composite.last.results]
