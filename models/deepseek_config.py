# SPDX-License-Identifier: MIT
"""Configs of DeepSeek V2 and V3 checkpoints."""

from collections.abc import Mapping
from typing import Any

import attrs

from .config import ConfigError, float_of, int_of, refuse_unknown
from .latent import LATENT_KEYS, LatentConfig, latent_fields
from .moe import expert_sizes

_MOE_KEYS = {
    "first_k_dense_replace", "intermediate_size", "moe_intermediate_size", "moe_layer_freq",
    "n_group", "n_routed_experts", "n_shared_experts", "norm_topk_prob", "num_experts",
    "num_experts_per_tok", "num_local_experts", "routed_scaling_factor", "scoring_func",
    "topk_group", "topk_method",
}  # fmt: skip
# Layers that predict tokens further ahead are stored after the others and not read; the rest
# balances experts in training.
_UNUSED = {"aux_loss_alpha", "ep_size", "num_mtp_layers", "num_nextn_predict_layers", "seq_aux"}
_USED = LATENT_KEYS | _MOE_KEYS | _UNUSED


@attrs.frozen(kw_only=True)
class DeepseekConfig(LatentConfig):
    """Sizes and switches of a DeepSeek checkpoint; its `sizes` add f mlp and those of experts.

    Layers from `first_sparse` on have experts.  `sigmoid` is the router of V3, else V2's softmax;
    experts are chosen from `kept_groups` of `groups` groups.
    """

    intermediate_size: int
    expert_size: int
    shared_size: int
    num_experts: int
    active: int
    first_sparse: int
    sigmoid: bool
    groups: int
    kept_groups: int
    routed_scale: float

    @staticmethod
    def from_v2(config: Mapping[str, Any]) -> "DeepseekConfig":
        """Read the `config.json` of a V2 checkpoint.

        Raises:
            ConfigError: a key that may change the result is not understood.
        """
        method = config.get("topk_method") or "greedy"
        _demand(config, "deepseek_v2", "softmax", {"greedy", "group_limited_greedy"})
        if config.get("norm_topk_prob"):
            raise ConfigError(
                "config key 'norm_topk_prob' = True: published implementations of DeepSeek V2 "
                "disagree on what it means; set it to false if the checkpoint was made without"
            )
        return _read(config, sigmoid=False, grouped=method == "group_limited_greedy")

    @staticmethod
    def from_v3(config: Mapping[str, Any]) -> "DeepseekConfig":
        """Read the `config.json` of a V3 checkpoint.

        Raises:
            ConfigError: a key that may change the result is not understood.
        """
        _demand(config, "deepseek_v3", "sigmoid", {"noaux_tc"})
        if not config.get("norm_topk_prob", True):
            raise ConfigError("config key 'norm_topk_prob' must be true for DeepSeek V3, got False")
        return _read(config, sigmoid=True, grouped=True)

    def sizes(self) -> dict[str, int | None]:
        experts = expert_sizes(self.num_experts, self.expert_size)
        return {**super().sizes(), "f": self.intermediate_size, **experts}


def _demand(config: Mapping[str, Any], family: str, scoring: str, methods: set[str]) -> None:
    refuse_unknown(config, _USED, family)
    for key, known in (
        ("scoring_func", {scoring}), ("topk_method", methods), ("moe_layer_freq", {1}),
    ):  # fmt: skip
        if config.get(key) is not None and config[key] not in known:
            raise ConfigError(
                f"config key {key!r} = {config[key]!r} is not one of {sorted(map(str, known))}, "
                f"which family {family!r} computes"
            )


def _read(config: Mapping[str, Any], *, sigmoid: bool, grouped: bool) -> DeepseekConfig:
    count, size = int_of(config, "n_routed_experts"), int_of(config, "moe_intermediate_size")
    groups = int_of(config, "n_group", 1) if grouped else 1
    if count % groups or count < 2 * groups:
        raise ConfigError(f"{count} experts do not divide into n_group = {groups} groups of many")
    return DeepseekConfig(
        **latent_fields(config),
        intermediate_size=int_of(config, "intermediate_size"),
        expert_size=size,
        shared_size=size * int_of(config, "n_shared_experts", 1),
        num_experts=count,
        active=int_of(config, "num_experts_per_tok"),
        first_sparse=int_of(config, "first_k_dense_replace", 0),
        sigmoid=sigmoid,
        groups=groups,
        kept_groups=int_of(config, "topk_group", 1) if grouped else 1,
        routed_scale=float_of(config, "routed_scaling_factor", 1.0),
    )
