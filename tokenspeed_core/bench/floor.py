# SPDX-License-Identifier: MIT
"""The least time a card can take for a case: bytes and operations at its rates."""

from collections.abc import Mapping
from typing import Any

import attrs

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
    head_bytes: int
    expert_bytes: int  # of one layer's worth of each expert, all layers
    experts: int
    active: int  # experts a token
    itemsize: int
    key_bytes: int  # a token, all layers
    key_operations: int  # a query token and a key, all layers

    @classmethod
    def of(cls, runner: Runner, config: Mapping[str, Any]) -> "Floor":
        """Return the floor of a runner on the shape that `config` describes."""
        tensors = runner.packs
        head = config["vocab_size"] * config["hidden_size"] * tensors[0].itemsize
        experts = config.get("num_experts") or config.get("n_routed_experts") or 1
        chosen = [x for x in tensors if x.dim() == 3 and experts > 1 and x.shape[0] == experts]
        expert = sum(x.nbytes for x in chosen)
        tables = head * (1 if config.get("tie_word_embeddings") else 2)
        heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
        latent = config.get("kv_lora_rank")
        if latent:
            across = 2 * (2 * latent + config["qk_rope_head_dim"])
        else:
            across = 4 * config.get("head_dim", config["hidden_size"] // heads)
        return cls(
            weight_bytes=sum(x.nbytes for x in tensors) - expert - tables,
            head_bytes=head,
            expert_bytes=expert // experts,
            experts=experts,
            active=config.get("num_experts_per_tok", 0) if chosen else 0,
            itemsize=tensors[0].itemsize,
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
        used = self.weight_bytes + self.expert_bytes * self.active
        seen = tokens * (case.cached + (new + 1) / 2)
        operations = 2 / self.itemsize * (used * tokens + self.head_bytes * case.batch)
        operations += self.key_operations * seen
        return max(
            (read + keys * self.key_bytes) / rates.bytes_per_ms,
            operations / rates.operations_per_ms,
        )
