# SPDX-License-Identifier: MIT
"""Rotary frequencies of a model config: default, linear, Llama 3 and YaRN scaling."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from .config import ConfigError, float_of, int_of

# Kind: the keys that it needs, and those that it may have.
_KEYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        (),
    ),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
}


@attrs.frozen
class Rope:
    """Base and scaling of rotary frequencies; `original` is the context trained before scaling.

    `partial` is the share of a head that is turned.  `low` and `high` are Llama 3's bounds in
    wavelengths; `slow` and `fast` YaRN's in turns over the original context, rounded outwards to
    whole frequencies if `whole`.  `scale` multiplies cosines and sines, `logit_scale` the logits
    of families that scale them (multi-head latent attention).
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192
    fast: float = 32.0
    slow: float = 1.0
    whole: bool = True
    scale: float = 1.0
    logit_scale: float = 1.0
    partial: float = 1.0

    @staticmethod
    def from_hf(config: Mapping[str, Any], also: Collection[str] = ()) -> "Rope":
        """Read `rope_parameters`, or `rope_theta` and `rope_scaling` of older files.

        `also` names further keys that the family understands, `partial_rotary_factor` for one.

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
        needed, optional = _KEYS[kind]
        if unknown := sorted(set(given) - {*needed, *optional, *also}):
            raise ConfigError(f"rope scaling {kind!r} has no key {unknown[0]!r}")
        if missing := sorted(set(needed) - set(given)):
            raise ConfigError(f"rope scaling {kind!r} lacks the key {missing[0]!r}")
        partial = 1.0
        if "partial_rotary_factor" in also:
            outer = float_of(config, "partial_rotary_factor", 1.0)
            partial = float_of(given, "partial_rotary_factor", outer)
        plain = Rope(theta=float(theta), kind=kind, partial=partial)
        if kind == "yarn":
            return _yarn(plain, given, int_of(config, "max_position_embeddings", 2048))
        return attrs.evolve(
            plain,
            factor=float_of(given, "factor", 1.0),
            low=float_of(given, "low_freq_factor", 1.0),
            high=float_of(given, "high_freq_factor", 4.0),
            original=int_of(given, "original_max_position_embeddings", 8192),
        )

    def width(self, head_dim: int) -> int:
        """Return how many leading elements of a head are turned."""
        return int(head_dim * self.partial)

    def inv_freq(self, width: int) -> Tensor:
        """Return float32 `[width / 2]`, radians per position.

        Llama 3 keeps wavelengths below `original / high`, divides those above `original / low`
        by `factor`, and blends linearly in `original / wavelength` between (Llama 3.1 release).
        YaRN keeps frequencies of more than `fast` turns in `original` positions, divides those of
        less than `slow` by `factor`, and blends linearly in their index (Peng et al. 2023).
        """
        powers = torch.arange(0, width, 2, dtype=torch.float32) / width
        inv = 1.0 / self.theta**powers
        if self.kind == "linear":
            return inv / self.factor
        if self.kind == "llama3":
            turns = self.original * inv / (2 * math.pi)
            blend = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
            return inv * ((1 - blend) / self.factor + blend)
        if self.kind == "yarn":
            first, last = self._index(self.fast, width), self._index(self.slow, width)
            if self.whole:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, width - 1)
            span = last - first or 0.001
            divided = ((torch.arange(width // 2, dtype=torch.float32) - first) / span).clamp(0, 1)
            return inv / self.factor * divided + inv * (1 - divided)
        return inv

    def _index(self, turns: float, width: int) -> float:
        """Return the index of the frequency that makes so many turns in `original` positions."""
        wave = self.original / (turns * 2 * math.pi)
        return width * math.log(wave) / (2 * math.log(self.theta))


def _yarn(plain: Rope, given: Mapping[str, Any], max_position: int) -> Rope:
    original = int_of(given, "original_max_position_embeddings", max_position)
    factor = float_of(given, "factor", max_position / original)
    mscale = float_of(given, "mscale", 0.0)
    every = float_of(given, "mscale_all_dim", 0.0)
    both = mscale and every
    plain_scale = _growth(factor, mscale) / _growth(factor, every) if both else _growth(factor, 1.0)
    return attrs.evolve(
        plain,
        factor=factor,
        original=original,
        fast=float_of(given, "beta_fast", 32.0),
        slow=float_of(given, "beta_slow", 1.0),
        whole=bool(given.get("truncate", True)),
        scale=float_of(given, "attention_factor", plain_scale),
        logit_scale=_growth(factor, every) ** 2 if every else 1.0,
    )


def _growth(factor: float, weight: float) -> float:
    """Return how much sharper logits must be when the context grows by `factor`."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
