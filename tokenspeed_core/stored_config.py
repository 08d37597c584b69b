# SPDX-License-Identifier: MIT
"""The config that a model's files carry, without its weights."""

import json
from typing import Any

from .checkpoint import CheckpointError, open_checkpoint
from .checkpoint.float8_checkpoint import plain_config
from .model_source import resolve


def stored_config(model: str) -> dict[str, Any]:
    """Return the config of a .gguf file, a directory, a config.json, a hub id or an alias.

    Raises:
        ModelNotFoundError: nothing is there.
        CheckpointError: the file holds no config.
    """
    source = resolve(model, weights=False)
    if source.kind == "gguf":
        with open_checkpoint(source.path) as checkpoint:
            return checkpoint.config
    file = source.path / "config.json"
    try:
        return plain_config(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is not a JSON object: {error}") from error
