# SPDX-License-Identifier: MIT
"""What an engine config says about the model, made definite: family, sizes, dtypes, layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from .checkpoint import open_checkpoint
from .config import EngineConfig
from .kernels.float8 import FLOAT8
from .model_definition import family_in, registered
from .model_source import cache_directory, resolve
from .models.embedder import embedder
from .models.family import Compilation, Family
from .models.sampling import Choice
from .ops import composites_on
from .pooling import Pooling
from .sharding import Layout, Plan, RankPlan
from .sharding.layout_text import parse_layout
from .sharding.link import parse_links
from .sharding.machine import CPU, H100
from .sharding.plan import Forward
from .sharding.plan_cache import PlanCache
from .sharding.plan_table import PlanTable, priced_size
from .stored_config import stored_config
from .weight_format import PLAIN

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_CACHE_DTYPES = {**_DTYPES, "fp8": FLOAT8}


class ModelSpecError(ValueError):
    """The model cannot be served as configured."""


@attrs.frozen
class ModelSpec:
    """One model as it will be served; equal on all ranks and in the launcher.

    Without a `plan_cache` its plan is compiled at each start.
    """

    path: Path
    family: Family[Any]
    config: Any
    layout: Layout
    dtype: torch.dtype
    cache_dtype: torch.dtype
    block_size: int
    max_model_len: int
    plan_cache: PlanCache | None
    weights: str  # a format of `weight_format`
    most_tokens: int  # of a step, all ranks together
    links: tuple[str, ...]  # words of `parse_links`
    embeds: bool  # its programs end in hidden rows, not in logits

    @classmethod
    def of(cls, engine: EngineConfig) -> "ModelSpec":
        """Resolve and read the model that `engine` names.

        Raises:
            ModelNotFoundError, CheckpointError, ConfigError, PoolingError: from finding and
                reading it.
            ModelSpecError: a setting does not suit this model.
        """
        path = resolve(engine.model, weights=engine.load_format != "dummy").path
        if engine.load_format == "dummy":
            stored, form = stored_config(engine.model), PLAIN
        else:
            with open_checkpoint(path) as checkpoint:
                stored, form = checkpoint.config, checkpoint.form
        dtype = _dtype(engine.dtype, stored)
        embeds = Pooling.of(path) is not None
        if engine.family:
            family = family_in(engine.family)
            family = embedder(family) if embeds else family
        else:
            family = registered(_architecture(stored, path), embeds)
        config = family.config(stored)
        longest = int(config.max_position)
        if engine.max_model_len > longest:
            raise ModelSpecError(
                f"max_model_len = {engine.max_model_len} exceeds the {longest} positions that "
                f"{path} was made for; give at most {longest}"
            )
        layout = parse_layout(engine.layout or f"tp={engine.tp}")
        cache_dtype = dtype if engine.kv_cache == "auto" else _CACHE_DTYPES[engine.kv_cache]
        return cls(
            path=path,
            family=family,
            config=config,
            layout=layout,
            dtype=dtype,
            cache_dtype=cache_dtype,
            block_size=engine.block_size,
            max_model_len=engine.max_model_len or longest,
            plan_cache=_plan_cache(engine),
            weights=form if engine.weights == "auto" else engine.weights,
            most_tokens=engine.step_tokens * layout.mesh.size(layout.mesh.requests),
            links=tuple(word.strip() for word in engine.link.split(",") if word.strip()),
            embeds=embeds,
        )

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return int(self.config.vocab_size)

    def chosen(self, choice: Choice, device_type: str = "cpu") -> tuple[Forward, ...]:
        """Return the programs whose result is tokens, of a vocabulary that stays sharded.

        There is one for each plan of `plans`, in that order and in the way of that plan.
        """
        how = self._compilation(device_type)
        draft = how.draft(self.family, self.config, self.layout, choice)
        table = self.plans(device_type)
        return tuple(
            draft.plan(draft.run(way, priced_size(start))).load()
            for start, way in zip(table.starts, table.ways, strict=True)
        )

    def plan(self, device_type: str = "cpu") -> Plan:
        """Compile the model for its layout and for the kernels that a device has.

        It is the plan of steps whose size is not told.

        Raises:
            MeshError: the mesh does not divide the model; legal sizes are listed.
        """
        draft = self._compilation(device_type).draft(self.family, self.config, self.layout)
        return draft.plan(draft.program(0))

    def plans(self, device_type: str = "cpu") -> PlanTable:
        """Return what a rank needs to run steps of every size, from the plan cache if it is there.

        Raises:
            MeshError: the mesh does not divide the model; legal sizes are listed.
            ModelSpecError: the program never meets along an axis of the mesh.
        """
        table = self._plans(device_type)
        _refuse_idle_axes(table.first)
        return table

    def _plans(self, device_type: str) -> PlanTable:
        how = self._compilation(device_type)
        given = (self.family, self.config, self.layout, self.most_tokens)
        if self.plan_cache is None:
            return how.table(*given)
        return self.plan_cache.table(
            how.key(*given),
            self.family.caches(self.config, self.block_size, self.cache_dtype),
            self.family.derived(self.config),
            lambda: how.table(*given),
        )

    def _compilation(self, device_type: str) -> Compilation:
        machine = H100 if device_type == "cuda" else CPU
        links = parse_links(self.links, machine.links.default)
        return Compilation(
            dtype=self.dtype,
            block_size=self.block_size,
            cache_dtype=self.cache_dtype,
            composites=composites_on(device_type, self.dtype),
            machine=attrs.evolve(machine, links=links),
            # On GPUs nobody has timed sums that are scattered against whole ones.
            open_rows=device_type != "cuda",
        )


def _refuse_idle_axes(plan: RankPlan) -> None:
    """Whatever is sharded meets again by a collective: an axis without one holds equal copies."""
    met = set(plan.mesh.requests)
    met |= {factor for group in plan.groups for factor in plan.mesh.expand(tuple(group.split("+")))}
    if idle := [f"{name}={size}" for name, size in plan.mesh.factors if name not in met]:
        raise ModelSpecError(
            f"no part of the model is spread over {', '.join(idle)} of mesh {str(plan.mesh)!r}: "
            f"its ranks would hold copies and compute the same. Cut the layers into stages along "
            f"it ('stages:{idle[0].partition('=')[0]}'), place a dim there ('f:tp+dp', 'e:dp'), or "
            f"leave the axis out"
        )


def _architecture(stored: Mapping[str, Any], path: Path) -> str:
    architectures = stored.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise ModelSpecError(
            f"the config of {path} has architectures = {architectures!r}; "
            f"it must be a list that names one, such as ['LlamaForCausalLM']"
        )
    return str(architectures[0])


def _plan_cache(engine: EngineConfig) -> PlanCache | None:
    """A family from a file has none: a key cannot tell what else that file imports."""
    if engine.plan_cache == "off" or engine.family:
        return None
    return PlanCache(Path(engine.plan_cache or cache_directory() / "plans").expanduser())


def _dtype(setting: str, config: Mapping[str, Any]) -> torch.dtype:
    """Float32 if that is asked for, or stored and nothing was asked; bfloat16 otherwise."""
    if setting != "auto":
        return _DTYPES[setting]
    stored = str(config.get("dtype") or config.get("torch_dtype") or "")
    return torch.float32 if stored.endswith("float32") else torch.bfloat16
