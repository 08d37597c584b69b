# SPDX-License-Identifier: MIT
"""Plans: everything a rank needs to run a model under a layout."""

import hashlib
import linecache
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Self

import attrs
import numpy as np
import torch
from torch import Tensor

from .emit import emit
from .mesh import Mesh
from .program import Program
from .storage import Pack, nest
from .tree import map_leaves

Forward = Callable[[Any, Mapping[str, Any], Any, Any], tuple[Tensor, Any]]


@attrs.frozen
class CacheShape:
    """One cache tensor of one layer: its shape on a rank, with None for the number of blocks."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def blocks(self, count: int) -> tuple[int, ...]:
        """Return the shape for `count` blocks."""
        return tuple(count if size is None else size for size in self.shape)


@attrs.frozen
class Part:
    """What ranks at one place of a pipeline keep: packs by name, caches of layers start to stop."""

    packs: tuple[str, ...]
    start: int
    stop: int


@attrs.frozen(eq=False, slots=False)
class RankPlan:
    """What a rank needs to run a compiled model: the same for every rank of `mesh`.

    `groups` has the rank groups of each axis name that the program passes to `c`; `source` is the
    emitted program; `storage` lists the packs a rank keeps; `cache` one tuple of shapes a layer;
    `caches` is the declared tree of them; `constants` parameters that come from the config, by
    path.  Along a pipeline ranks keep one of the `parts` each, see `of_rank`; a plan of one part
    keeps the `whole_hash`.
    """

    name: str
    mesh: Mesh
    groups: Mapping[str, tuple[tuple[int, ...], ...]]
    source: str
    storage: tuple[Pack, ...]
    cache: tuple[tuple[CacheShape, ...], ...]
    caches: Any
    constants: Mapping[str, Tensor]
    parts: tuple[Part, ...] = attrs.field(default=(), kw_only=True)
    whole_hash: str = attrs.field(default="", kw_only=True)

    def of_rank(self, rank: int) -> Self:
        """Return the plan with the storage and caches of this rank's stage only."""
        if not self.parts:
            return self
        part = self.parts[self.mesh.index(rank, self.mesh.stages)]
        return attrs.evolve(
            self,
            storage=tuple(pack for pack in self.storage if pack.name in set(part.packs)),
            cache=self.cache[part.start : part.stop],
            caches=self.caches[part.start : part.stop],
            parts=(),
            whole_hash=self.hash,
        )

    @cached_property
    def hash(self) -> str:
        """Return a digest that ranks compare: equal plans run equal programs on equal storage."""
        if self.whole_hash:
            return self.whole_hash
        stored = "\n".join(map(str, (self.mesh, *self.storage, *self.cache, *self.parts)))
        digest = hashlib.sha256(f"{self.source}\n{stored}".encode())
        for path, constant in sorted(self.constants.items()):
            digest.update(f"{path} {constant.tolist()}".encode())
        return digest.hexdigest()

    def load(self) -> Forward:
        """Return `forward(c, w, caches, batch) -> (result, caches)` from the emitted source."""
        path = f"<plan {self.hash[:12]}>"
        lines = self.source.splitlines(keepends=True)
        linecache.cache[path] = (len(self.source), None, lines, path)
        names: dict[str, Any] = {"__name__": path}
        exec(compile(self.source, path, "exec"), names)
        forward: Forward = names["forward"]
        return forward

    def allocate(self, device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """Return uninitialised packs by name, except for the constants, which are filled in."""
        return {pack_.name: self.allocate_pack(pack_, device) for pack_ in self.storage}

    def allocate_pack(self, pack_: Pack, device: str | torch.device = "cpu") -> Tensor:
        """Return one uninitialised pack, constants filled in."""
        made = torch.empty(pack_.shape, dtype=pack_.dtype, device=device)
        for member in pack_.members:
            if member.path in self.constants:
                member.write(made, self.constants[member.path].to(device))
        return made

    def place(self, params: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
        """Return this rank's packs, written from whole parameters by path."""
        packs = self.allocate()
        for pack_ in self.storage:
            for member in pack_.members:
                if member.path not in self.constants:
                    whole = params[member.path]
                    member.write(packs[pack_.name], whole[member.slices(self.mesh, rank)])
        return packs

    def weights(self, packs: Mapping[str, Any]) -> dict[str, Any]:
        """Return packs by name as the tree `w` that `forward` takes."""
        return nest(packs)

    def allocate_caches(self, blocks: int, device: str | torch.device = "cpu") -> Any:
        """Return zeroed caches of `blocks` blocks, layer by layer, as `forward` takes them."""
        shapes = iter([shape for layer in self.cache for shape in layer])
        return map_leaves(
            lambda path, leaf: zeros((shape := next(shapes)).blocks(blocks), shape.dtype, device),
            self.caches,
        )


@attrs.frozen(eq=False, slots=False)
class Plan(RankPlan):
    """A rank's plan with the typed program that it was emitted from.

    `ops` names the module that the emitted program imports.
    """

    ops: str
    program: Program

    def of_rank(self, rank: int) -> Self:
        """Return the plan, and its program, of this rank's stage only."""
        stage = self.mesh.index(rank, self.mesh.stages)
        part = super().of_rank(rank)
        return attrs.evolve(part, program=self.program.of_stage(stage)) if self.parts else part

    def stages(self) -> tuple[Self, ...]:
        """Return the plan of each stage of the pipeline; one without is its own."""
        firsts = {self.mesh.index(r, self.mesh.stages): r for r in range(self.mesh.num_ranks)}
        return tuple(self.of_rank(firsts[stage]) for stage in sorted(firsts))

    def checked(self) -> "Plan":
        """Return this plan with a program that hands each value to `c.check`, for simulation."""
        return attrs.evolve(
            self, source=emit(self.program, f"{self.name}, checked.", self.ops, checked=True)
        )


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device) -> Tensor:
    """Return zeros that take memory where they are written."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy asks the system for zeroed pages and leaves them untouched until they are used;
    # torch writes every one, which takes seconds for a large cache.
    pages = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(pages).view(dtype).reshape(shape)
