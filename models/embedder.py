# SPDX-License-Identifier: MIT
"""Embedders: a family's decoder without its head, whose rows are what is wanted."""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import attrs

from .checkpoint import Source
from .config import ConfigError
from .decoder_config import DecoderConfig
from .family import Family
from .registry import family_of

C = TypeVar("C", bound=DecoderConfig)

# What configs say of embeddings, not of the model.
MATRYOSHKA_KEYS = frozenset({"is_matryoshka", "matryoshka_dimensions"})
_BASE, _HEADED = "Model", "ForCausalLM"


def embedder_of(architecture: str) -> Family[Any]:
    """Return the embedder of an architecture; its name may be that of a model saved without a head.

    Raises:
        ConfigError: no family computes it.
    """
    if architecture.endswith(_BASE):
        architecture = architecture.removesuffix(_BASE) + _HEADED
    return embedder(family_of(architecture))


def embedder(family: Family[C]) -> Family[C]:
    """Return a family's decoder without its head: its program's result is `[m,d]` in float32.

    Raises:
        ConfigError: the family has no such form.
    """
    if family.hidden is None:
        raise ConfigError(
            f"family {family.name!r} gives out no hidden rows: give its Family a `hidden`, which "
            f"returns what `forward` multiplies by the head"
        )
    return attrs.evolve(
        family,
        name=f"{family.name}_embedder",
        config=partial(_config, family),
        forward=family.hidden,
        hf=partial(_sources, family),
    )


def _config(family: Family[C], stored: Mapping[str, Any]) -> C:
    known = {key: value for key, value in stored.items() if key not in MATRYOSHKA_KEYS}
    return attrs.evolve(family.config(known), tied=True)  # a head of its own is not read


def _sources(family: Family[C], config: C) -> Mapping[str, Source]:
    """Models that are saved without a head have no `model.` before their names."""
    return {path: each.or_without("model.") for path, each in family.hf(config).items()}
