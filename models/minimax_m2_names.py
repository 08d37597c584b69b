# SPDX-License-Identifier: MIT
"""Where the parameters of a MiniMax-M2 stand in a checkpoint, by its own names or transformers'."""

from collections.abc import Mapping

from .checkpoint import Source
from .minimax_m2 import MiniMaxM2Config
from .names import ATTENTION, NORMS, Row, moe_rows, row, table

_WIDE_NORM: tuple[Row, ...] = (
    row("attn.q_norm", "self_attn.q_norm.weight", "(k g h) -> k g h"),
    row("attn.k_norm", "self_attn.k_norm.weight", "(k h) -> k h"),
)
_CORRECTION: Row = (
    "moe.correction",
    Source(
        "block_sparse_moe.e_score_correction_bias",
        "o -> o",
        other=Source("mlp.e_score_correction_bias", "o -> o"),
    ),
)


def hf(config: MiniMaxM2Config) -> Mapping[str, Source]:
    """Return the checkpoint tensor of each parameter path."""
    experts = moe_rows("block_sparse_moe", gate="w1", up="w3", down="w2")
    rows = [*NORMS, *ATTENTION, *_WIDE_NORM, *experts, _CORRECTION]
    return table([rows] * config.num_layers, config.tied)
