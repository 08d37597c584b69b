# SPDX-License-Identifier: MIT
"""A model without its weights: the family that computes it, and its config."""

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs

from .checkpoint import CheckpointError
from .model_source import resolve
from .models.embedder import embedder_of
from .models.family import Family
from .models.registry import family_of
from .pooling import Pooling
from .stored_config import stored_config


class ModelDefinitionError(ValueError):
    """A Python file does not define one family and a config for it."""


@attrs.frozen(eq=False)
class ModelDefinition:
    """A family with the raw config of one model, as `config.json` has it."""

    family: Family[Any]
    stored: Mapping[str, Any]
    embeds: bool = False  # it ends in hidden rows, not in logits

    @property
    def config(self) -> Any:
        """Return the config that the family's functions take."""
        return self.family.config(self.stored)


def define(model: str, config: str | None = None) -> ModelDefinition:
    """Return the definition of a model: a .py file, or anything that `stored_config` reads.

    A .py file has one module-level `Family`, and a dict `CONFIG` unless `config` names a
    `config.json`.

    Raises:
        ModelDefinitionError: the file defines no family, several, or no config.
        ModelNotFoundError, CheckpointError, ConfigError, PoolingError: nothing usable is there.
    """
    if model.endswith(".py"):
        module = _imported(Path(model))
        family = _family(module, model)
        stored = _json(Path(config)) if config else getattr(module, "CONFIG", None)
        if not isinstance(stored, Mapping):
            raise ModelDefinitionError(
                f"{model} has no config: write CONFIG = {{...}} in it, or give --config config.json"
            )
        return ModelDefinition(family, stored)
    stored = _json(Path(config)) if config else stored_config(model)
    embeds = Pooling.of(resolve(model, weights=False).path) is not None
    architecture = str((stored.get("architectures") or ["none"])[0])
    return ModelDefinition(registered(architecture, embeds), stored, embeds)


def registered(architecture: str, embeds: bool) -> Family[Any]:
    """Return the family that computes an architecture, or with `embeds` its embedder.

    Raises:
        ConfigError: no family computes it, or it has no hidden rows to give out.
    """
    return (embedder_of if embeds else family_of)(architecture)


def family_in(file: str) -> Family[Any]:
    """Return the one family that a .py file defines.

    Raises:
        ModelDefinitionError: there is no such file, or it defines no family or several.
    """
    return _family(_imported(Path(file)), file)


def _family(module: ModuleType, file: str) -> Family[Any]:
    families = [value for value in vars(module).values() if isinstance(value, Family)]
    if len({id(family) for family in families}) != 1:
        raise ModelDefinitionError(
            f"{file} has {len(families)} module-level families, it needs one: "
            f"write FAMILY = Family(...)"
        )
    return families[0]


def _imported(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelDefinitionError(f"{path} is no file; give the .py file of the family")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # annotations of its classes are evaluated by module name
    spec.loader.exec_module(module)
    return module


def _json(file: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is not a JSON object: {error}") from error
