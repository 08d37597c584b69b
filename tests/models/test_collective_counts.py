# SPDX-License-Identifier: MIT
"""Collectives of released models under each layout, held to what other engines issue by hand.

The numbers are those of vLLM's, SGLang's and TokenSpeed 0.1's own model code: `2 L + 1` all-reduces
for tensor parallelism (the one is the embedding), a gather of the logits, a pair of collectives
around the experts where attention is spread by requests.  Bytes are payloads of one token.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.models.family import Compilation
from tokenspeed_core.models.sampling import Choice
from tokenspeed_core.sharding import Layout, Plan
from tokenspeed_core.sharding.cost import moves, nbytes
from tokenspeed_core.sharding.layout_text import parse_layout
from tokenspeed_core.sharding.program import LOCAL, Move
from tokenspeed_core.sharding.verify import verify
from tokenspeed_core.sharding.way import experts_text

YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
}
QWEN3_30B_A3B = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}
DEEPSEEK_V3 = {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": YARN,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.1-70b": ("LlamaForCausalLM", LLAMA_70B),
    "qwen3-30b-a3b": ("Qwen3MoeForCausalLM", QWEN3_30B_A3B),
    "deepseek-v3": ("DeepseekV3ForCausalLM", DEEPSEEK_V3),
}
STREAM = {"Hidden": "n@tp d", "Tokens": "n@tp d"}
LAYOUTS = {
    "tp8": Layout("tp=8"),
    "sp8": Layout("tp=8", types={"Hidden": "n@tp d"}),
    "kv4-rep2": Layout("tp=(kv=4,rep=2)", place={"k": "kv", "g": "rep"}),
    "ep8": Layout("tp=8", place={"j": "", "e": "tp"}),
    "ep4": Layout("tp=4", place={"j": "", "e": "tp"}),
    "dp64-ep64": Layout("dp=64 tp=1", place={"j": "", "e": "dp", "f": ""}, requests="dp"),
    "dp8-tp8-ep64": Layout(
        "dp=8 tp=8", place={"j": "", "e": "dp+tp", "f": ""}, types=STREAM, requests="dp"
    ),
}
# The defaults of transformers' configs are those of GPT-OSS-120B, Qwen3-Next-80B-A3B, MiniMax-M2.
DEFAULTS = {
    "GptOssForCausalLM": "GptOssConfig",
    "Qwen3NextForCausalLM": "Qwen3NextConfig",
    "MiniMaxM2ForCausalLM": "MiniMaxM2Config",
}
FILTERED = Choice(drawn=True, filtered=True)
WIDE = (("n", "d"), ("m", "d"))
MANY = 1 << 16  # tokens for which bytes decide
CASES = [
    ("llama-3.1-70b", "tp8", 0, {"all_reduce": 161, "all_gather": 1}),
    # Wanted rows are reduced, not gathered: one all-reduce of rows for one gather of tokens.
    ("llama-3.1-70b", "sp8", 0, {"reduce_scatter": 161, "all_gather": 161, "all_reduce": 1}),
    ("qwen3-30b-a3b", "kv4-rep2", 0, {"all_reduce": 97, "all_gather": 1}),
    ("qwen3-30b-a3b", "ep4", 0, {"all_reduce": 97, "all_gather": 1}),
    ("deepseek-v3", "tp8", 0, {"all_reduce": 123, "all_gather": 1}),
    ("deepseek-v3", "ep8", 0, {"all_reduce": 123, "all_gather": 1}),
    ("deepseek-v3", "dp64-ep64", 0, {"all_gather": 58, "reduce_scatter": 58}),
    ("deepseek-v3", "dp64-ep64", MANY, {"dispatch": 58, "combine": 58}),
]


def plan_of(model: str, layout: str, tokens: int = 0) -> Plan:
    architecture, config = MODELS[model]
    family = family_of(architecture)
    return compile_plan(
        family,
        family.config(config),
        LAYOUTS[layout],
        dtype=torch.bfloat16,
        block_size=64,
        tokens=tokens,
    )


def collectives(plan: Plan) -> Iterator[tuple[Move, int]]:
    for move, times in moves(plan.program.driver):
        if move.kind not in LOCAL:
            yield move, times


@pytest.mark.parametrize(("model", "layout", "tokens", "expected"), CASES)
def test_counts_are_those_of_hand_written_engines(
    model: str, layout: str, tokens: int, expected: dict[str, int]
) -> None:
    found: Counter[str] = Counter()
    for move, times in collectives(plan_of(model, layout, tokens)):
        found[move.kind] += 0 if move.joins else times
    assert +found == expected


@pytest.mark.parametrize("layout", ["tp=2", "tp=2; j: e:tp", "tp=2; Hidden=n@tp d"])
@pytest.mark.parametrize("architecture", DEFAULTS)
def test_sinks_delta_nets_and_wide_norms_need_what_others_issue(
    architecture: str, layout: str
) -> None:
    """2 L + 1 sums, MiniMax-M2's norms over all heads two numbers a token and layer more."""
    import transformers

    stored = getattr(transformers, DEFAULTS[architecture])().to_dict()
    family = family_of(architecture)
    config = family.config(stored)
    plan = compile_plan(family, config, parse_layout(layout), dtype=torch.bfloat16, block_size=64)
    found: Counter[str] = Counter()
    payload = 0
    for move, times in collectives(plan):
        found[move.kind] += 0 if move.joins else times
        payload += times * nbytes(move.operand, {"n": 1, "m": 1})
    sums = 2 * config.num_layers + 1
    extra = config.num_layers if architecture == "MiniMaxM2ForCausalLM" else 0
    if "Hidden" in layout:
        expected = {"reduce_scatter": sums, "all_gather": sums, "all_reduce": 1 + extra}
    else:
        expected = {"all_reduce": sums + extra, "all_gather": 1}
        row = sums * stored["hidden_size"] + config.vocab_size
        assert payload == row * 2 + extra * 2 * 4
    assert found == expected


@pytest.mark.parametrize(("tokens", "exchange"), [(0, ()), (MANY, ("dispatch", "combine"))])
def test_attention_over_requests_and_heads_scatters_and_gathers_beside_its_experts(
    tokens: int, exchange: tuple[str, ...]
) -> None:
    """A scatter and a gather a layer, of latents, beside the pair of the experts in 58 of 61."""
    found: Counter[str] = Counter()
    for move, times in collectives(plan_of("deepseek-v3", "dp8-tp8-ep64", tokens)):
        found[move.kind] += 0 if move.joins else times
    pairs = dict.fromkeys(("all_gather", "reduce_scatter"), 62 if exchange else 120)
    assert found == {**pairs, **dict.fromkeys(exchange, 58), "all_reduce": 1}


# Layouts that leave open how rows lie: the tokens of a step choose that, and how rows reach their
# experts.  For each: collectives of a step, and the elements of a token's payload, two bytes each.
OPEN = {
    "deepseek-v3": "dp=8 tp=8; j: f: e:dp+tp requests:dp",
    "qwen3-30b-a3b": "tp=4; j: e:tp",
}
WIDTH, SPARSE, DENSE, LATENTS = 7168, 58, 3, 1536 + 512 + 64
ROUTED = WIDTH + 8 * (4 + 4) // 2  # a row, its experts' ids (int32) and weights (float32)
CHOSEN = [
    # Sums over tp behind attention; rows gathered over dp; one sum over all for experts.
    (
        "deepseek-v3",
        128,
        "gathered over dp, summed over tp",
        {"all_reduce": 1 + SPARSE + 61, "all_gather": SPARSE + 1},
        WIDTH * (1 + 61 + SPARSE) + ROUTED * SPARSE,
    ),
    # Sums scattered behind attention, latents gathered; rows gathered over all, sums scattered.
    (
        "deepseek-v3",
        512,
        "gathered over dp+tp",
        {"reduce_scatter": 1 + 61 + SPARSE, "all_gather": 1 + 61 + SPARSE, "all_reduce": 1},
        WIDTH * (1 + 61 + SPARSE) + LATENTS * 61 + ROUTED * SPARSE,
    ),
    (
        "deepseek-v3",
        MANY,
        "exchanged over dp+tp",
        {
            **{"reduce_scatter": 1 + 61, "all_gather": 1 + 61, "all_reduce": 1},
            **{"dispatch": SPARSE, "combine": SPARSE},
        },
        WIDTH * (1 + 61 + SPARSE) + LATENTS * 61 + ROUTED * SPARSE,
    ),
    ("qwen3-30b-a3b", 16, "summed over tp", {"all_reduce": 97, "all_gather": 1}, 2048 * 96),
    (
        "qwen3-30b-a3b",
        8192,
        "gathered over tp",
        {"reduce_scatter": 97, "all_gather": 97, "all_reduce": 1},
        2048 * (97 + 48) + (2048 + 24) * 48,
    ),
    (
        "qwen3-30b-a3b",
        MANY,
        "exchanged over tp",
        {
            **{"reduce_scatter": 49, "all_gather": 49, "all_reduce": 1},
            **{"dispatch": 48, "combine": 48},
        },
        2048 * (97 + 48) + (2048 + 24) * 48,
    ),
]


@pytest.mark.parametrize(("model", "tokens", "lowering", "expected", "payload"), CHOSEN)
def test_each_lowering_of_experts_is_chosen_where_it_is_cheapest(
    model: str, tokens: int, lowering: str, expected: dict[str, int], payload: int
) -> None:
    architecture, config = MODELS[model]
    family = family_of(architecture)
    draft = Compilation(torch.bfloat16, 64).draft(
        family, family.config(config), parse_layout(OPEN[model])
    )
    program = draft.program(tokens)
    verify(program)
    assert experts_text(program) == lowering
    found: Counter[str] = Counter()
    sent = 0
    for move, times in moves(program.driver):
        if move.kind not in LOCAL:
            found[move.kind] += 0 if move.joins else times
            sent += times * nbytes(move.operand, {"n": 1, "m": 0})
    assert +found == expected
    assert sent == 2 * payload


def test_stages_of_a_pipeline_issue_what_the_whole_does() -> None:
    architecture, config = MODELS["llama-3.1-70b"]
    family = family_of(architecture)
    layout = parse_layout("pp=4 tp=8; stages:pp")
    plan = compile_plan(family, family.config(config), layout, dtype=torch.bfloat16, block_size=64)
    found: Counter[str] = Counter()
    for part in plan.stages():
        for move, times in collectives(part):
            found[move.kind] += times
    assert found == {"all_reduce": 161, "all_gather": 1}


@pytest.mark.parametrize(
    ("model", "layout", "layers", "width", "vocabulary"),
    [
        ("llama-3.1-70b", "tp8", 80, 8192, 128256),
        ("qwen3-30b-a3b", "ep4", 48, 2048, 151936),
        ("deepseek-v3", "ep8", 61, 7168, 129280),
    ],
)
def test_bytes_are_those_of_hand_written_engines(
    model: str, layout: str, layers: int, width: int, vocabulary: int
) -> None:
    one = {"n": 1, "m": 1}
    total = sum(
        times * nbytes(move.operand, one) for move, times in collectives(plan_of(model, layout))
    )
    assert total == (2 * layers + 1) * width * 2 + vocabulary * 2


def test_latents_are_gathered_not_the_hidden_state() -> None:
    """Before attention 4,224 bytes a token, where gathering the hidden state takes 14,336."""
    plan = plan_of("deepseek-v3", "dp8-tp8-ep64")
    block = plan.program.blocks[0]
    gathers = [s for s in block.steps if isinstance(s, Move) and s.kind == "all_gather"]
    latents = [move for move in gathers if move.result.spec.names[1] != "d"]
    assert sum(nbytes(move.operand, {"n": 1}) for move in latents) == (1536 + 512 + 64) * 2


@pytest.mark.parametrize("model", list(MODELS))
def test_tokens_are_chosen_without_gathering_logits(model: str) -> None:
    """A greedy row sends 16 bytes, a filtered one 80 KiB; others gather or exchange its logits."""
    architecture, config = MODELS[model]
    family = family_of(architecture)
    made = family.config(config)
    for choice, most in ((Choice(), 16), (Choice(drawn=True), 16), (FILTERED, 81 << 10)):
        plan = compile_plan(
            family, made, Layout("tp=4"), dtype=torch.bfloat16, block_size=64, choice=choice
        )
        chosen = [m for m, _ in collectives(plan) if m.operand.spec.names not in WIDE]
        sent = sum(nbytes(move.operand, {"m": 1}) for move in chosen)
        assert 0 < sent <= most
        assert sent < made.vocab_size * 2
        assert all(move.kind == "all_reduce" for move in chosen)


def test_rows_ids_and_weights_reach_their_experts_in_one_collective() -> None:
    """Others gather the hidden state and the router's logits one after the other."""
    plan = plan_of("deepseek-v3", "dp64-ep64")
    block = plan.program.blocks[-1]
    gathers = [s for s in block.steps if isinstance(s, Move) and s.kind == "all_gather"]
    assert [move.joins for move in gathers] == [False, True, True]
