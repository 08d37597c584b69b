# SPDX-License-Identifier: MIT
"""Drafts: programs that are placed, before the size of a step decides the rest of a plan."""

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import attrs
from torch import Tensor

from .budget import check_budgets
from .bundle import bundle
from .carry import carry_sums
from .compose import compose
from .cost import groups_of
from .division import check_layout
from .emit import emit
from .error import BudgetError, PlacementError
from .exchange import exchange
from .fuse import fuse, unfuse
from .layout import Layout
from .machine import H100, Machine
from .one_sum import one_sum
from .overlap import WORTH_US, overlap
from .pack import pack
from .plan import CacheShape, Part, Plan
from .price import price
from .program import Program
from .propagate import propagate
from .spec import Spec
from .stage import cut, packs_of
from .storage import Pack, storage
from .trace import Traced
from .tree import Declared, leaves
from .verify import verify
from .verify_stages import verify_stages
from .way import Offer, Way, row_types, summed_over, with_rows, written_rows


@attrs.frozen(kw_only=True, eq=False, slots=False)
class Draft:
    """A placed program, its parameters packed, and what all plans of it have in common.

    `composites` are the ops that the target computes several steps with (`composite.py`); with
    `open_rows` the size of a step may decide how rows lie between layers (`way.py`).
    """

    name: str
    ops: str
    layout: Layout
    traced: Traced
    placed: Program
    composites: Collection[str]
    machine: Machine
    params: Any
    caches: tuple[Any, ...]
    constants: Mapping[str, Tensor]
    open_rows: bool

    @classmethod
    def of(
        cls,
        traced: Traced,
        layout: Layout,
        *,
        name: str,
        ops: str,
        params: Any,
        caches: tuple[Any, ...],
        constants: Mapping[str, Tensor],
        composites: Collection[str] = (),
        machine: Machine = H100,
        open_rows: bool = True,
    ) -> "Draft":
        """Place a traced program by a layout; `ops` names the module of the emitted imports.

        Raises:
            ShardingError: the layout does not fit the model.
        """
        check_layout(layout, (params, caches), traced.aliases)
        return cls(
            name=name,
            ops=ops,
            layout=layout,
            traced=traced,
            placed=_placed(traced, layout, composites),
            composites=composites,
            machine=machine,
            params=params,
            caches=caches,
            constants=constants,
            open_rows=open_rows,
        )

    def program(self, tokens: int) -> Program:
        """Return the cheapest program for steps of so many tokens, all ranks together.

        0 is a size that is not told: rows lie as the layout says and are gathered for experts.
        """
        return self.best(tokens)[0].program if tokens else self._sized(bundle(self.placed), 0)

    def best(self, tokens: int) -> tuple[Offer, tuple[Offer, ...]]:
        """Return the cheapest way to run such steps, and all that were priced.

        It is the layout's own, the first, if little speaks for another.  Tokens also decide which
        collectives start early, which products are pipelined with theirs and which sums are paid
        at once.
        """
        offers = tuple(self._offer(way, tokens) for way in self.bundled)
        cheapest = min(offers, key=lambda offer: offer.us)
        return cheapest if cheapest.us + WORTH_US < offers[0].us else offers[0], offers

    def run(self, way: Way, tokens: int) -> Program:
        """Return the program that runs steps of so many tokens in one of the ways of `bundled`."""
        return self._sized(self.bundled[way], tokens)

    @cached_property
    def as_written(self) -> Way:
        """How rows lie where no size is told, not exchanged."""
        return Way(written_rows(self.layout, row_types(self.traced)) or ())

    @cached_property
    def bundled(self) -> Mapping[Way, Program]:
        """Every way to run a step and its program, as far as no size decides it.

        Rows may lie in another way than the layout's where its types leave that open, the model
        can be placed so, and ranks then keep the same packs.
        """
        placed = {self.as_written.rows: self.placed, **self._otherwise()}
        found: dict[Way, Program] = {}
        for rows, program in placed.items():
            found[Way(rows)] = bundle(program)
            if (exchanged := exchange(program)) is not program:
                found[Way(rows, exchanged=True)] = bundle(exchanged)
        return found

    def _otherwise(self) -> dict[tuple[str, ...], Program]:
        types = row_types(self.traced)
        axes = summed_over(self.placed, types)
        if not self.open_rows or not axes or written_rows(self.layout, types) is not None:
            return {}
        layout = with_rows(self.layout, types, axes)
        try:
            made = _placed(self.traced, layout, self.composites)
            check_budgets(bundle(made))
        except (PlacementError, BudgetError):  # the model cannot, or should not, be placed so
            return {}
        return {axes: made} if set(storage(made)) == set(self.storage) else {}

    def _sized(self, bundled: Program, tokens: int) -> Program:
        paid = unfuse(one_sum(bundled, tokens, self.machine), self.composites)
        composed = compose(paid, self.composites, tokens, self.machine)
        return cut(overlap(composed, tokens, self.machine))

    def _offer(self, way: Way, tokens: int) -> Offer:
        program = self.run(way, tokens)
        return Offer(way, program, *price(program, tokens, self.machine))

    def plan(self, program: Program) -> Plan:
        """Verify and emit a program of this draft.

        Raises:
            ShardingError: a function exceeds its budget.
        """
        verify(program)
        verify_stages(program)
        check_budgets(program)
        mesh = self.layout.mesh
        title = f"{self.name} on mesh {mesh}: the program of every rank."
        return Plan(
            name=self.name,
            mesh=mesh,
            groups={mesh.group(axes): mesh.groups(axes) for axes in groups_of(program)},
            parts=tuple(
                Part(packs_of(stage, mesh), stage.start, stage.stop) for stage in program.stages
            ),
            source=emit(program, title, self.ops),
            storage=self.storage,
            cache=self.cache,
            caches=self.caches,
            constants=self.constants,
            ops=self.ops,
            program=program,
        )

    @cached_property
    def storage(self) -> tuple[Pack, ...]:
        """The packs that a rank keeps: what the size of a step decides reads the same ones."""
        return storage(self.placed)

    @cached_property
    def cache(self) -> tuple[tuple[CacheShape, ...], ...]:
        """The shapes of each layer's caches."""
        shapes: dict[int, tuple[CacheShape, ...]] = {}
        for cache in self.caches:
            if id(cache) not in shapes:
                shapes[id(cache)] = tuple(
                    _cache_shape(path, leaf, self.layout) for path, leaf in leaves(cache)
                )
        return tuple(shapes[id(cache)] for cache in self.caches)


def _placed(traced: Traced, layout: Layout, composites: Collection[str]) -> Program:
    return pack(carry_sums(fuse(propagate(traced, layout), composites), composites))


def build(traced: Traced, layout: Layout, *, tokens: int = 0, **given: Any) -> Plan:
    """Compile a traced program for a layout and steps of so many `tokens` (`Draft.program`).

    All else is given to `Draft.of`.

    Raises:
        ShardingError: the layout does not fit the model, or a function exceeds its budget.
    """
    draft = Draft.of(traced, layout, **given)
    return draft.plan(draft.program(tokens))


def _cache_shape(path: str, leaf: Declared, layout: Layout) -> CacheShape:
    spec: Spec = layout.stationary(leaf.spec)
    shape = tuple(
        size if size is None else size // layout.mesh.size(dim.axes)
        for size, dim in zip(leaf.sizes, spec.dims, strict=True)
    )
    return CacheShape(path, shape, leaf.dtype)
