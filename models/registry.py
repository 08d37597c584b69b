# SPDX-License-Identifier: MIT
"""The table of families: which one computes an architecture."""

from collections.abc import Mapping
from typing import Any

from . import llama, llama_names
from .config import ConfigError
from .family import Family

LLAMA = Family(
    name="llama",
    config=llama.LlamaConfig.from_hf,
    params=llama.params,
    caches=llama.caches,
    forward=llama.forward,
    hf=llama_names.hf,
    derived=llama.LlamaConfig.derived,
)

FAMILIES: Mapping[str, Family[Any]] = {"LlamaForCausalLM": LLAMA}


def family_of(architecture: str) -> Family[Any]:
    """Return the family of an architecture name.

    Raises:
        ConfigError: no family computes it.
    """
    if architecture not in FAMILIES:
        raise ConfigError(
            f"architecture {architecture!r} is not supported; known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[architecture]
