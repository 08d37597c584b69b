# SPDX-License-Identifier: MIT
"""The least time a card can take for a case: bytes and operations at its rates."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor

from ..runner import Runner
from .case import Case


@attrs.frozen
class _Card:
    bytes_per_ms: float
    operations_per_ms: float  # dense bfloat16


# Data sheets of the SXM cards.
_CARDS = {
    "NVIDIA H100 80GB HBM3": _Card(3.35e9, 989e9),
    "NVIDIA H200": _Card(4.8e9, 989e9),
}


@attrs.frozen
class Floor:
    """What steps of a model cannot do without.

    Weights are read once a step, experts if a token chose them (uniformly), keys that requests
    share once; a weight is multiplied and added once a token, the head only for tokens that sample.
    """

    weight_bytes: int  # of all layers, experts aside
    weights: int  # how many numbers they are; so of the others
    head_bytes: int
    head_weights: int
    expert_bytes: int  # of one layer's worth of each expert, all layers
    expert_weights: int
    experts: int
    active: int  # experts a token
    key_bytes: int  # a token, all layers
    key_operations: int  # a query token and a key, all layers

    @classmethod
    def of(cls, runner: Runner, config: Mapping[str, Any]) -> "Floor":
        """Return the floor of a runner on the shape that `config` describes."""
        tensors = runner.packs
        experts = config.get("num_experts") or config.get("n_routed_experts") or 1
        held = {experts, experts // runner.ranks.world} - {1}  # by a rank
        chosen = [x for x in tensors if x.dim() == 3 and x.shape[0] in held]
        # The table of embeddings is read by the row, the head whole; they may be one.
        sizes = {config["vocab_size"] // parts for parts in (1, runner.ranks.world)}
        tables = [x for x in tensors if x.dim() == 2 and x.shape[0] in sizes]
        own = [x for x in tensors if not any(x is each for each in (*chosen, *tables))]
        heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
        latent = config.get("kv_lora_rank")
        if latent:
            across = 2 * (2 * latent + config["qk_rope_head_dim"])
        else:
            across = 4 * config.get("head_dim", config["hidden_size"] // heads)
        return cls(
            weight_bytes=_bytes(own),
            weights=_count(own),
            head_bytes=_bytes(tables[:1]),
            head_weights=_count(tables[:1]),
            expert_bytes=_bytes(chosen) // experts,
            expert_weights=_count(chosen) // experts,
            experts=experts,
            active=config.get("num_experts_per_tok", 0) if chosen else 0,
            key_bytes=runner.groups.parent_bytes // runner.block_size,
            key_operations=across * heads * layers,
        )

    def ms(self, case: Case, card: str) -> float | None:
        """Return milliseconds for a step of decode or a first token; None for other cards."""
        rates = _CARDS.get(card)
        if rates is None:
            return None
        new = max(case.new, 1)
        tokens = case.batch * new
        missed = (1 - self.active / self.experts) ** tokens
        read: float = self.weight_bytes + self.head_bytes
        read += self.expert_bytes * self.experts * (1 - missed)
        keys = case.shared + case.batch * (case.cached - case.shared)
        used = self.weights + self.expert_weights * self.active
        seen = tokens * (case.cached + (new + 1) / 2)
        operations: float = 2 * (used * tokens + self.head_weights * case.batch)
        operations += self.key_operations * seen
        return max(
            (read + keys * self.key_bytes) / rates.bytes_per_ms,
            operations / rates.operations_per_ms,
        )


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)


def _count(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() for x in tensors)
