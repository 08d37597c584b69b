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
from .exchange import exchange
from .fuse import fuse
from .layout import Layout
from .machine import H100, Machine
from .overlap import overlap
from .pack import pack
from .plan import CacheShape, Part, Plan
from .program import Program
from .propagate import propagate
from .spec import Spec
from .stage import cut, packs_of
from .storage import Pack, storage
from .trace import Traced
from .tree import Declared, leaves
from .verify import verify
from .verify_stages import verify_stages


@attrs.frozen(kw_only=True, eq=False, slots=False)
class Draft:
    """A placed program, its parameters packed, and what all plans of it have in common.

    `composites` are the ops that the target computes several steps with (`composite.py`).
    """

    name: str
    ops: str
    layout: Layout
    placed: Program
    composites: Collection[str]
    machine: Machine
    params: Any
    caches: tuple[Any, ...]
    constants: Mapping[str, Tensor]

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
    ) -> "Draft":
        """Place a traced program by a layout; `ops` names the module of the emitted imports.

        Raises:
            ShardingError: the layout does not fit the model.
        """
        check_layout(layout, (params, caches), traced.aliases)
        placed = pack(carry_sums(fuse(propagate(traced, layout), composites), composites))
        return cls(
            name=name,
            ops=ops,
            layout=layout,
            placed=placed,
            composites=composites,
            machine=machine,
            params=params,
            caches=caches,
            constants=constants,
        )

    def program(self, tokens: int) -> Program:
        """Return the program for steps of so many tokens, all ranks together.

        They decide how rows reach their experts (0: by gathers), which collectives start early,
        and which products are pipelined with theirs (0: none).
        """
        exchanged = bundle(exchange(self.placed, tokens, self.machine))
        composed = compose(exchanged, self.composites, tokens, self.machine)
        return cut(overlap(composed, tokens, self.machine))

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
