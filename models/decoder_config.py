# SPDX-License-Identifier: MIT
"""What the configs of all decoders say: sizes, norm, rope, whether the head is tied."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs
from torch import Tensor

from .config import ConfigError, float_of, int_of
from .rope import Rope

_DECODER_TEXT = """
hidden_act hidden_size max_position_embeddings num_hidden_layers rms_norm_eps rope_parameters
rope_scaling rope_theta tie_word_embeddings vocab_size
"""
DECODER_KEYS = frozenset(_DECODER_TEXT.split())
GQA_KEYS = DECODER_KEYS | {"head_dim", "num_attention_heads", "num_key_value_heads"}
WINDOW_KEYS = {"layer_types", "max_window_layers", "sliding_window", "use_sliding_window"}


@attrs.frozen(kw_only=True)
class DecoderConfig:
    """Sizes and switches of any decoder; `rotary_dim` is the width that rope turns."""

    hidden_size: int
    num_layers: int
    vocab_size: int
    max_position: int
    norm_eps: float
    rope: Rope
    rotary_dim: int
    tied: bool

    def sizes(self) -> dict[str, int | None]:
        """Return the size of each dim."""
        return {"d": self.hidden_size, "v": self.vocab_size, "i": self.rotary_dim // 2}

    def derived(self) -> dict[str, Tensor]:
        """Return the parameters that come from the config, by path."""
        return {"inv_freq": self.rope.inv_freq(self.rotary_dim)}


@attrs.frozen(kw_only=True)
class GqaConfig(DecoderConfig):
    """A decoder with grouped-query attention; its `sizes` add k kv heads, g groups, h head."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int = 0  # how many tokens a windowed layer reads
    windowed: tuple[bool, ...] = ()  # of each layer; empty: none

    def sizes(self) -> dict[str, int | None]:
        groups = self.num_heads // self.num_kv_heads
        return {**super().sizes(), "k": self.num_kv_heads, "g": groups, "h": self.head_dim}


def decoder_fields(
    config: Mapping[str, Any], rope_dim: int, rope_keys: Collection[str] = ()
) -> dict[str, Any]:
    """Return the fields of a `DecoderConfig` from a `config.json`.

    `rope_dim` is the width of what rope turns (in part); `rope_keys` as in `Rope.from_hf`.

    Raises:
        ConfigError: another activation than SiLU, or a rope that is not known.
    """
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ConfigError(f"config key 'hidden_act' must be 'silu', got {activation!r}")
    rope = Rope.from_hf(config, rope_keys)
    return {
        "hidden_size": int_of(config, "hidden_size"),
        "num_layers": int_of(config, "num_hidden_layers"),
        "vocab_size": int_of(config, "vocab_size"),
        "max_position": int_of(config, "max_position_embeddings", 2048),
        "norm_eps": float_of(config, "rms_norm_eps", 1e-6),
        "rope": rope,
        "rotary_dim": rope.width(rope_dim),
        "tied": bool(config.get("tie_word_embeddings", False)),
    }


def head_dim_of(config: Mapping[str, Any]) -> int:
    """Return the width of a head: given, or what divides the model among the query heads."""
    heads = int_of(config, "num_attention_heads")
    return int_of(config, "head_dim", int_of(config, "hidden_size") // heads)


def gqa_fields(config: Mapping[str, Any], rope_keys: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of a `GqaConfig` from a `config.json`.

    Raises:
        ConfigError: as `decoder_fields`, or the heads do not divide.
    """
    heads = int_of(config, "num_attention_heads")
    kv_heads = int_of(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise ConfigError(f"{heads} query heads do not divide over {kv_heads} kv heads")
    head_dim = head_dim_of(config)
    return {
        **decoder_fields(config, head_dim, rope_keys),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
    }


def window_fields(
    config: Mapping[str, Any], enabled: bool, by_default: Callable[[int], bool]
) -> dict[str, Any]:
    """Return `window` and `windowed`; `layer_types` says which layers, else `by_default(layer)`.

    Raises:
        ConfigError: a layer of another type, or a window without a size.
    """
    layers = int_of(config, "num_hidden_layers")
    types = config.get("layer_types")
    if types is None:
        types = [_TYPES[enabled and by_default(layer)] for layer in range(layers)]
    if len(types) != layers or not set(types) <= set(_TYPES.values()):
        raise ConfigError(
            f"config key 'layer_types' must name {' or '.join(_TYPES.values())} for each of "
            f"{layers} layers, got {types!r}"
        )
    windowed = tuple(each == _TYPES[True] for each in types)
    return {
        "window": int_of(config, "sliding_window") if any(windowed) else 0,
        "windowed": windowed,
    }


_TYPES = {False: "full_attention", True: "sliding_attention"}
