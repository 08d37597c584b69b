# SPDX-License-Identifier: MIT
"""What a model's steps cost on a card: a roofline with measured shares of the card's peaks.

    step = fixed + wire * tokens
         + max(weight bytes / bandwidth, products / product rate)
         + max(KV bytes / KV bandwidth, attention / attention rate)

The peaks of `CARDS` are the vendors' figures for dense arithmetic.  What is reached of them was
measured on an H100 and is assumed of the others: reads stream at 3.1 of 3.35 TB/s, those of
attention at 0.9 of that; products with weights run at 680, causal attention at 580 of 989 TFLOP/s
in bf16; a step costs 0.4 ms besides (launches between the kernels, norms, sampling).  A dense 8B
model in bf16 at batch 1 behind 1k of context then takes 5.3 ms a step, measured 5.2 to 5.6 ms; its
8k prefill takes 0.20 s.
"""

import math
from collections.abc import Mapping

import attrs

from ..scheduler._scheduler import Device
from .model_shape import ModelShape

_STREAM = 3.1 / 3.35
_BLOCKS = 0.9  # of the stream, by attention over a cache in blocks
_PRODUCTS = 680 / 989
_ATTENTION = 580 / 989
_LINK = 0.86  # of a PCIe x16 slot, by large copies from pinned memory
_WIRE = 0.75  # of the fabric between cards, by a ring of large messages
_STEP_S = 0.4e-3
_COLLECTIVE_S = 8e-6  # latency of one all-reduce inside a host
_USABLE = 0.9  # of the memory; the rest is the runtime's and fragments
_ACTIVATIONS = 2e9  # bytes
BYTES = {"bf16": 2, "fp8": 1}


class DeviceModelError(ValueError):
    """A model, a card and a layout that do not go together."""


@attrs.frozen
class Card:
    """An accelerator: bytes, bytes/s and FLOP/s of one; dense peaks."""

    name: str
    memory: float
    bandwidth: float
    bf16: float
    fp8: float
    link: float  # to the host, each way
    fabric: float  # to the other cards of its host, each way

    def rate(self, dtype: str) -> float:
        """Peak FLOP/s of products in `dtype`."""
        return self.fp8 if dtype == "fp8" else self.bf16


# The "cpu" is two cores with AVX-512 (tests/bench/README.md), its peaks such that the shares above
# give what was measured: 28 GB/s and 155 GFLOP/s.
CARDS: Mapping[str, Card] = {
    card.name: card
    for card in (
        Card("a100", 85e9, 2.04e12, 312e12, 312e12, 32e9, 300e9),
        Card("l40s", 48e9, 0.864e12, 362e12, 733e12, 32e9, 32e9),
        Card("h100", 85e9, 3.35e12, 989e12, 1979e12, 64e9, 450e9),
        Card("h200", 150e9, 4.8e12, 989e12, 1979e12, 64e9, 450e9),
        Card("b200", 191e9, 8.0e12, 2250e12, 4500e12, 64e9, 900e9),
        Card("mi300x", 206e9, 5.3e12, 1307e12, 2615e12, 64e9, 448e9),
        Card("cpu", 32e9, 30e9, 0.22e12, 0.22e12, 10e9, 10e9),
    )
}


@attrs.frozen
class DeviceModel:
    """One replica: a model on `tp` equal cards.

    Weights and KV heads are split over the ranks; KV heads are repeated where there are fewer of
    them than ranks.
    """

    model: ModelShape
    card: Card
    tp: int = 1
    dtype: str = "bf16"
    kv_dtype: str = "bf16"

    def __attrs_post_init__(self) -> None:
        for name, value in (("dtype", self.dtype), ("kv_dtype", self.kv_dtype)):
            if value not in BYTES:
                raise DeviceModelError(f"{name} = {value!r}; give {' or '.join(BYTES)}")
        if self.tp < 1 or self.model.heads % self.tp:
            raise DeviceModelError(
                f"tp = {self.tp} does not divide the {self.model.heads} heads of {self.model.name}"
            )

    @property
    def kv_token_bytes(self) -> float:
        """Bytes of a token's KV on one rank."""
        heads = max(1, math.ceil(self.model.kv_heads / self.tp))
        return self.model.kv_values / self.model.kv_heads * heads * BYTES[self.kv_dtype]

    @property
    def pool_tokens(self) -> int:
        """Tokens of KV that fit beside the weights.

        Raises:
            DeviceModelError: the weights leave no room.
        """
        shape = self.model
        params = shape.dense_params + shape.expert_params + 2 * shape.head_params
        weights = params * BYTES[self.dtype] / self.tp
        room = self.card.memory * _USABLE - weights - _ACTIVATIONS
        tokens = int(room / self.kv_token_bytes)
        if tokens < 1:
            raise DeviceModelError(
                f"{shape.name} in {self.dtype} has {weights / 1e9:.0f} GB of weights a rank, which "
                f"leaves a {self.card.name} of {self.card.memory / 1e9:.0f} GB no room for KV; "
                f"raise --tp above {self.tp} or take a larger card"
            )
        return tokens

    def device(self) -> Device:
        """The costs of one rank's steps."""
        shape, card, size = self.model, self.card, BYTES[self.dtype]
        rate = card.rate(self.dtype)
        attention = card.rate(self.kv_dtype)
        active = shape.expert_params * shape.experts_per_token / max(1, shape.experts)
        crossings = 2 * shape.layers if self.tp > 1 else 0
        ring = 2 * (self.tp - 1) / self.tp * shape.hidden * 2
        return Device(
            step_s=_STEP_S + crossings * _COLLECTIVE_S,
            token_s=crossings * ring / (card.fabric * _WIRE),
            weight_bytes=(shape.dense_params + shape.head_params) * size / self.tp,
            expert_bytes=shape.expert_params * size / self.tp,
            expert_share=shape.experts_per_token / max(1, shape.experts),
            kv_token_bytes=self.kv_token_bytes,
            bandwidth=card.bandwidth * _STREAM,
            kv_bandwidth=card.bandwidth * _STREAM * _BLOCKS,
            token_flops=2 * (shape.dense_params + active) / self.tp,
            sample_flops=2 * shape.head_params / self.tp,
            product_rate=rate * _PRODUCTS,
            pair_flops=shape.pair_flops / self.tp,
            attention_rate=attention * _ATTENTION,
            link_bandwidth=card.link * _LINK,
        )
