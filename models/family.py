# SPDX-License-Identifier: MIT
"""Families: what one model architecture brings, and its compilation for a layout."""

import hashlib
import platform
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
import torch
from torch import Tensor

from ..ops import declared_batch
from ..ops.sampling import SampledBatch, declared_sampled_batch
from ..sharding import Layout, Plan, trace
from ..sharding.draft import Draft
from ..sharding.machine import H100, Machine
from ..sharding.plan_cache import sources_digest
from ..sharding.plan_table import TypedPlanTable, build_table
from .checkpoint import Source
from .sampling import Choice, choose, rows_of

C = TypeVar("C")


@attrs.frozen
class Family(Generic[C]):
    """One architecture.

    `config` reads a checkpoint's `config.json`; `params` and `caches` declare trees for a config
    and dtype; `forward(params, caches, batch, config) -> (logits, caches)` is the model;
    `hf` maps parameter paths to checkpoint tensors; `derived` gives parameters that
    come from the config, by path.  `hidden` is `forward` without the head, for `embedder`.
    """

    name: str
    config: Callable[[Mapping[str, Any]], C]
    params: Callable[[C, torch.dtype], Any]
    caches: Callable[[C, int, torch.dtype], tuple[Any, ...]]
    forward: Callable[..., Any]
    hf: Callable[[C], Mapping[str, Source]]
    derived: Callable[[C], Mapping[str, Tensor]]
    hidden: Callable[..., Any] | None = None


def compile_plan(
    family: Family[C],
    config: C,
    layout: Layout,
    *,
    dtype: torch.dtype,
    block_size: int,
    cache_dtype: torch.dtype | None = None,
    tokens: int = 0,
    composites: Collection[str] = (),
    choice: Choice | None = None,
    machine: Machine = H100,
) -> Plan:
    """Return the plan of a model under a layout: parameters in `dtype`, caches too if not told.

    `tokens` of a step, all ranks together, decide how rows lie and reach their experts, by what
    that costs on a `machine` (`Draft.best`); `composites` are what its target computes several
    ops with (`ops.composites_on`).  With a `choice` the program's result is `choose`'s, not
    logits, which then stay sharded.

    Raises:
        MeshError: the mesh does not divide the model; legal sizes are listed.
        PlacementError: the layout's types cannot be reconciled.
    """
    how = Compilation(dtype, block_size, cache_dtype, frozenset(composites), machine)
    draft = how.draft(family, config, layout, choice)
    return draft.plan(draft.program(tokens))


@attrs.frozen
class Compilation:
    """What a model's plans depend on beside its family, config and layout (`Draft`)."""

    dtype: torch.dtype
    block_size: int
    cache_dtype: torch.dtype | None = None
    composites: frozenset[str] = frozenset()
    machine: Machine = H100
    open_rows: bool = True

    def table(
        self,
        family: Family[C],
        config: C,
        layout: Layout,
        most: int,
        choice: Choice | None = None,
    ) -> TypedPlanTable:
        """Return the plans of steps of up to `most` tokens, all ranks together; see `compile_plan`.

        Raises:
            MeshError, PlacementError: as `compile_plan` does.
        """
        return build_table(self.draft(family, config, layout, choice), most)

    def draft(
        self, family: Family[C], config: C, layout: Layout, choice: Choice | None = None
    ) -> Draft:
        """Trace a model and place it.

        Raises:
            MeshError, PlacementError: as `compile_plan` does.
        """
        caches = family.caches(config, self.block_size, self.cache_dtype or self.dtype)
        params = family.params(config, self.dtype)
        if choice is None:
            traced = trace(family.forward, params, caches, declared_batch(), config)
        else:
            batch = declared_sampled_batch()
            traced = trace(_chosen, params, caches, batch, family.forward, config, choice)
            axes = layout.place.get("v", "tp")
            if axes and "Logits" in traced.aliases:
                layout = layout.but(types={"Logits": f"m v@{axes}", **layout.types})
        return Draft.of(
            traced,
            layout,
            name=family.name,
            ops=f"{__package__.rpartition('.')[0]}.ops",
            params=params,
            caches=caches,
            constants=family.derived(config),
            composites=self.composites,
            machine=self.machine,
            open_rows=self.open_rows,
        )

    def key(self, family: Family[C], config: C, layout: Layout, most: int) -> str:
        """Return the key of `table`'s result, 64 hex digits: equal keys have equal plans.

        Declared types and program inputs are functions of the config, the arguments and our
        sources, so these stand for them.
        """
        root = Path(__file__).parent.parent
        parts = (
            sources_digest((root / "sharding", root / "ops", root / "models")),
            platform.python_version(),
            torch.__version__,
            family.name,
            config,
            layout.mesh,
            sorted(layout.place.items()),
            sorted(layout.types.items()),
            (layout.requests, layout.stages),
            attrs.evolve(self, composites=frozenset()),
            sorted(self.composites),
            most,
        )
        return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()


def _chosen(
    params: Any,
    caches: Any,
    batch: SampledBatch,
    forward: Callable[..., Any],
    config: Any,
    choice: Choice,
) -> tuple[Tensor, Any]:
    logits, caches = forward(params, caches, batch, config)
    return choose(logits, rows_of(batch), choice, logits.shape[-1]), caches
