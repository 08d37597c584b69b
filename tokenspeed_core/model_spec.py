# SPDX-License-Identifier: MIT
"""What an engine config says about the model, made definite: family, sizes, dtypes, layout."""

from pathlib import Path
from typing import Any

import attrs
import torch

from .checkpoint import Checkpoint, open_checkpoint
from .config import EngineConfig
from .model_source import resolve
from .models.family import Family, compile_plan
from .models.registry import family_of
from .ops import composites_on
from .sharding import Layout, Plan

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class ModelSpecError(ValueError):
    """The model cannot be served as configured."""


@attrs.frozen
class ModelSpec:
    """One model as it will be served; equal on all ranks and in the launcher."""

    path: Path
    family: Family[Any]
    config: Any
    layout: Layout
    dtype: torch.dtype
    cache_dtype: torch.dtype
    block_size: int
    max_model_len: int

    @classmethod
    def of(cls, engine: EngineConfig) -> "ModelSpec":
        """Resolve and read the model that `engine` names.

        Raises:
            ModelNotFoundError, CheckpointError, ConfigError: from finding and reading it.
            ModelSpecError: a setting does not suit this model.
        """
        path = resolve(engine.model).path
        with open_checkpoint(path) as checkpoint:
            stored = checkpoint.config
            dtype = _dtype(engine.dtype, checkpoint)
        architectures = stored.get("architectures")
        if not isinstance(architectures, list) or not architectures:
            raise ModelSpecError(
                f"the config of {path} has architectures = {architectures!r}; "
                f"it must be a list that names one, such as ['LlamaForCausalLM']"
            )
        family = family_of(str(architectures[0]))
        config = family.config(stored)
        longest = int(config.max_position)
        if engine.max_model_len > longest:
            raise ModelSpecError(
                f"max_model_len = {engine.max_model_len} exceeds the {longest} positions that "
                f"{path} was made for; give at most {longest}"
            )
        cache_dtype = dtype if engine.kv_cache == "auto" else _DTYPES[engine.kv_cache]
        return cls(
            path=path,
            family=family,
            config=config,
            layout=Layout(mesh=f"tp={engine.tp}"),
            dtype=dtype,
            cache_dtype=cache_dtype,
            block_size=engine.block_size,
            max_model_len=engine.max_model_len or longest,
        )

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return int(self.config.vocab_size)

    def plan(self, device_type: str = "cpu") -> Plan:
        """Compile the model for its layout and for the kernels that a device has.

        Raises:
            MeshError: the mesh does not divide the model; legal sizes are listed.
        """
        return compile_plan(
            self.family,
            self.config,
            self.layout,
            dtype=self.dtype,
            cache_dtype=self.cache_dtype,
            block_size=self.block_size,
            composites=composites_on(device_type, self.dtype),
        )


def _dtype(setting: str, checkpoint: Checkpoint) -> torch.dtype:
    """Float32 if that is asked for, or stored and nothing was asked; bfloat16 otherwise."""
    if setting != "auto":
        return _DTYPES[setting]
    stored = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "")
    return torch.float32 if stored.endswith("float32") else torch.bfloat16
