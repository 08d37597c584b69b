# SPDX-License-Identifier: MIT
"""The gated delta net (Yang et al. 2024): attention with a state of fixed size per request.

Dims: n tokens, d model, l key heads, w value heads a key head, p key dim, u value dim, x taps of
the convolutions; state: b states, y = x - 1.
"""

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from ..ops import (
    Batch,
    LayerState,
    causal_conv,
    delta_gates,
    einsum,
    gated_delta_rule,
    gated_rms_norm,
    l2_norm,
)
from ..sharding import Placed, declare, module, spmd
from .config import ConfigError, int_of
from .stream import Hidden

DELTA_KEYS = {
    "linear_conv_kernel_dim", "linear_key_head_dim", "linear_num_key_heads",
    "linear_num_value_heads", "linear_value_head_dim",
}  # fmt: skip
KEY_EPS = 1e-6


@attrs.frozen(kw_only=True)
class DeltaSizes:
    """Sizes of a delta net."""

    key_heads: int
    value_heads: int  # a key head
    key_dim: int
    value_dim: int
    taps: int

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "DeltaSizes":
        """Read a `config.json`.

        Raises:
            ConfigError: the value heads do not divide over the key heads.
        """
        keys = int_of(config, "linear_num_key_heads")
        values = int_of(config, "linear_num_value_heads")
        if values % keys:
            raise ConfigError(f"{values} value heads do not divide over {keys} key heads")
        return DeltaSizes(
            key_heads=keys,
            value_heads=values // keys,
            key_dim=int_of(config, "linear_key_head_dim"),
            value_dim=int_of(config, "linear_value_head_dim"),
            taps=int_of(config, "linear_conv_kernel_dim", 4),
        )

    def sizes(self) -> dict[str, int | None]:
        """Return the size of each dim."""
        return {
            "l": self.key_heads, "w": self.value_heads, "p": self.key_dim, "u": self.value_dim,
            "x": self.taps, "y": self.taps - 1,
        }  # fmt: skip


@module
class DeltaNet:
    """Projections of one delta net, its convolutions, decay and norm."""

    wq: Placed[Tensor, "d l@tp p"]
    wk: Placed[Tensor, "d l@tp p"]
    wv: Placed[Tensor, "d l@tp w u"]
    wz: Placed[Tensor, "d l@tp w u"]
    wa: Placed[Tensor, "d l@tp w"]
    wb: Placed[Tensor, "d l@tp w"]
    conv_q: Placed[Tensor, "l@tp p x"]
    conv_k: Placed[Tensor, "l@tp p x"]
    conv_v: Placed[Tensor, "l@tp w u x"]
    a_log: Placed[Tensor, "l@tp w", torch.float32]
    dt_bias: Placed[Tensor, "l@tp w"]
    norm: Placed[Tensor, "u"]
    wo: Placed[Tensor, "l@tp w u d"]


@spmd(budget="all_reduce<=1")
def delta_net(
    p: DeltaNet, x: Hidden, state: LayerState, batch: Batch, eps: float
) -> tuple[Hidden, LayerState]:
    """Return the update of the delta net for normed `x[n,d]`, and the state."""
    q, k = einsum("n d, d l p -> n l p", x, p.wq), einsum("n d, d l p -> n l p", x, p.wk)
    v = einsum("n d, d l w u -> n l w u", x, p.wv)
    z = einsum("n d, d l w u -> n l w u", x, p.wz)
    a, b = einsum("n d, d l w -> n l w", x, p.wa), einsum("n d, d l w -> n l w", x, p.wb)
    q, conv_q = causal_conv(q, p.conv_q, state.conv_q, batch)
    k, conv_k = causal_conv(k, p.conv_k, state.conv_k, batch)
    v, conv_v = causal_conv(v, p.conv_v, state.conv_v, batch)
    decay, beta = delta_gates(a, b, p.a_log, p.dt_bias)
    scale = q.shape[-1] ** -0.5
    q, k = l2_norm(q, KEY_EPS), l2_norm(k, KEY_EPS)
    o, delta = gated_delta_rule(q, k, v, decay, beta, state.delta, batch, scale)
    o = gated_rms_norm(o, z, p.norm, eps)
    state = LayerState(conv_q=conv_q, conv_k=conv_k, conv_v=conv_v, delta=delta)
    return einsum("n l w u, l w u d -> n d", o, p.wo), state


def layer_state(sizes: DeltaSizes, dtype: torch.dtype) -> LayerState:
    """Declare the state of one layer; the number of states is known at run time."""
    known = {**sizes.sizes(), "b": None}
    wide = declare(LayerState, known, torch.promote_types(dtype, torch.float32))
    return declare(LayerState, known, dtype, delta=wide.delta)
