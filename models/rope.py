# SPDX-License-Identifier: MIT
"""Rotary frequencies of a model config: default, linear and Llama 3 scaling."""

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from .config import ConfigError, float_of, int_of

_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


@attrs.frozen
class Rope:
    """Base and scaling of rotary frequencies; `original` is the context trained before scaling."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "Rope":
        """Read `rope_parameters`, or `rope_theta` and `rope_scaling` of older files.

        Raises:
            ConfigError: a scaling that is not known, or a key that its formula does not have.
        """
        new = config.get("rope_parameters")
        given = dict(new or config.get("rope_scaling") or {})
        theta = given.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
        kinds = [given.pop(key) for key in ("rope_type", "type") if key in given]
        kind = kinds[0] if kinds else "default"
        if kind not in _KEYS:
            raise ConfigError(f"rope scaling {kind!r} is not supported; known: {', '.join(_KEYS)}")
        if unknown := sorted(set(given) - set(_KEYS[kind])):
            raise ConfigError(f"rope scaling {kind!r} has no key {unknown[0]!r}")
        if missing := sorted(set(_KEYS[kind]) - set(given)):
            raise ConfigError(f"rope scaling {kind!r} lacks the key {missing[0]!r}")
        return Rope(
            float(theta),
            kind,
            float_of(given, "factor", 1.0),
            float_of(given, "low_freq_factor", 1.0),
            float_of(given, "high_freq_factor", 4.0),
            int_of(given, "original_max_position_embeddings", 8192),
        )

    def inv_freq(self, head_dim: int) -> Tensor:
        """Return float32 `[head_dim / 2]`, radians per position.

        Llama 3 keeps wavelengths below `original / high`, divides those above `original / low`
        by `factor`, and blends linearly in `original / wavelength` between (Llama 3.1 release).
        """
        powers = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        inv = 1.0 / self.theta**powers
        if self.kind == "linear":
            return inv / self.factor
        if self.kind == "llama3":
            turns = self.original * inv / (2 * math.pi)
            blend = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
            return inv * ((1 - blend) / self.factor + blend)
        return inv
