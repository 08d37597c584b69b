# SPDX-License-Identifier: MIT
"""Plans: what a rank stores, runs and communicates."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from tiny import BLOCK, CASES, LAYOUTS, ROPE3, SIZES

from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.sharding import AnnotationError, Layout, MeshError, Plan, explain
from tokenspeed_core.sharding.cost import cost, moves
from tokenspeed_core.sharding.program import LOCAL, Move

FAMILY = family_of("LlamaForCausalLM")
SMOLLM2 = dict(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
    rms_norm_eps=1e-5,
    rope_theta=100000,
    tie_word_embeddings=True,
)
LLAMA70B = dict(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=128256,
    rms_norm_eps=1e-5,
)


def plan_of(hf: dict[str, object], layout: Layout, dtype: torch.dtype = torch.float32) -> Plan:
    return compile_plan(FAMILY, FAMILY.config(hf), layout, dtype=dtype, block_size=BLOCK)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packs_hold_each_element_of_each_parameter(layout: str) -> None:
    """Number every element; on the ranks together each number stands as often as it should."""
    plan = plan_of({**SIZES, **CASES["gqa-biases"]}, LAYOUTS[layout], torch.float64)
    members = {member.path: member for pack in plan.storage for member in pack.members}
    numbered, start = {}, 0
    for path, member in members.items():
        size = torch.Size(member.sizes).numel()
        numbered[path] = torch.arange(start, start + size, dtype=torch.float64).view(member.sizes)
        start += size
    found = torch.zeros(start, dtype=torch.long)
    for rank in range(plan.mesh.num_ranks):
        for pack in plan.place(numbered, rank).values():
            if pack.dtype == torch.float64:
                found += torch.bincount(pack.flatten().long(), minlength=start)
    for path, member in members.items():
        if path in plan.constants:
            continue
        copies = plan.mesh.num_ranks // plan.mesh.size(tuple(a for x in member.axes for a in x))
        assert (found[numbered[path].long()] == copies).all(), path


def test_siblings_share_a_pack_row_major_out_by_in() -> None:
    plan = plan_of(SMOLLM2, Layout("tp=3"))
    packs = {pack.name: pack for pack in plan.storage}
    qkv = packs["layers.7.attn.wq_wk_wv"]
    assert qkv.shape == (3 * 64 + 64 + 64, 576)
    assert [(m.path, m.start, m.stop) for m in qkv.members] == [
        ("layers.7.attn.wq", 0, 192),
        ("layers.7.attn.wk", 192, 256),
        ("layers.7.attn.wv", 256, 320),
    ]
    assert qkv.members[0].slices(plan.mesh, 2) == (
        slice(0, 576),
        slice(2, 3),
        slice(0, 3),
        slice(0, 64),
    )
    assert packs["layers.0.mlp.w_gate_w_up"].shape == (1024, 576)
    assert packs["layers.0.mlp.w_down"].shape == (576, 512)
    assert packs["embed"].shape == (16384, 576)
    assert "head" not in packs, "a tied head is the embedding's storage"


def test_bytes_are_those_of_the_model() -> None:
    plan = plan_of(LLAMA70B, Layout("tp=8"), torch.bfloat16)
    stored = sum(torch.Size(pack.shape).numel() for pack in plan.storage)
    d, f, v, layers = 8192, 28672, 128256, 80
    layer = d * (64 + 16) * 128 + 64 * 128 * d + 3 * d * f
    assert stored == (layers * layer + 2 * v * d) // 8 + layers * 2 * d + d + 64
    assert [shape.blocks(5) for shape in plan.cache[0]] == [(5, 1, BLOCK, 128)] * 2
    assert len(plan.cache) == layers


def test_a_size_that_divides_nothing_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(MeshError, match=r"'k' has size 3, which tp=2 does not divide") as raised:
        plan_of(SMOLLM2, Layout("tp=2"))
    assert "choose tp from 1, 3" in str(raised.value)
    assert "place={'k': ''}" in str(raised.value)
    whole = plan_of(SMOLLM2, Layout("tp=2", place={"k": ""}))
    packs = {pack.name: pack.shape for pack in whole.storage}
    assert packs["layers.0.attn.wq_wk_wv"] == (15 * 64, 576)
    assert packs["layers.0.mlp.w_down"] == (576, 768)
    assert plan_of(SMOLLM2, Layout("tp=3")).mesh.num_ranks == 3


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        (Layout("tp=3", types={"Hiden": "n d"}), "'Hiden'"),
        (Layout("tp=3", place={"x": "tp"}), "'x'"),
        (Layout("tp=3", types={"Hidden": "n f"}), "Hidden='n f'"),
    ],
)
def test_a_layout_of_unknown_names_is_refused(layout: Layout, named: str) -> None:
    with pytest.raises(AnnotationError) as raised:
        plan_of(SMOLLM2, layout)
    assert named in str(raised.value)


def test_layouts_change_by_merging() -> None:
    one = Layout("tp=2", place={"k": "tp"}, types={"Hidden": "n d"})
    two = one.but(types={"Hidden": "n@tp d"}, place={"f": ""})
    assert dict(two.place) == {"k": "tp", "f": ""}
    assert dict(two.types) == {"Hidden": "n@tp d"}
    assert dict(one.types) == {"Hidden": "n d"}, "the first layout is as it was"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_emitted_file_stands_alone(layout: str, tmp_path: Path) -> None:
    plan = plan_of({**SIZES, "rope_parameters": ROPE3}, LAYOUTS[layout])
    tree = ast.parse(plan.source)
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = [getattr(node, "module", None) for node in imports]
    assert modules == ["typing", "tokenspeed_core.ops"]
    statements = [
        node
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
    ]
    lines = plan.source.splitlines()
    assert all(len(line) <= 100 for line in lines)
    for node in statements:
        near = lines[node.lineno - 2 : node.end_lineno]
        if not any("for p, kv" in line for line in near):
            assert any(re.search(r"# .*\w+\.py:\d+", line) for line in near), near
    if shutil.which("ruff"):
        path = tmp_path / "program.py"
        path.write_text("# SPDX-License-Identifier: MIT\n" + plan.source)
        config = Path(__file__).parents[2] / "pyproject.toml"
        subprocess.run(["ruff", "check", "--config", config, path], check=True)


def test_the_program_does_not_grow_with_depth() -> None:
    few = plan_of({**LLAMA70B, "num_hidden_layers": 2}, Layout("tp=8"))
    many = plan_of(LLAMA70B, Layout("tp=8"))
    assert few.source.replace("0:2", "0:80") == many.source
    assert len(many.program.blocks) == 1


def test_equal_plans_have_equal_hashes_and_others_do_not() -> None:
    plans = [
        plan_of(SMOLLM2, Layout("tp=3")),
        plan_of(SMOLLM2, Layout("tp=3", types={"Hidden": "n@tp d"})),
        plan_of(SMOLLM2, Layout("tp=1")),
        plan_of({**SMOLLM2, "rope_theta": 5e5}, Layout("tp=3")),
        plan_of(SMOLLM2, Layout("tp=3"), torch.bfloat16),
    ]
    assert len({plan.hash for plan in plans}) == len(plans)
    assert plan_of(SMOLLM2, Layout("tp=3")).hash == plans[0].hash


def test_groups_name_every_axis_that_the_program_passes() -> None:
    for layout in LAYOUTS.values():
        plan = plan_of(dict(SIZES), layout)
        named = set(re.findall(r'c\.\w+\([^"\n]*"([\w+]+)"', plan.source))
        assert named == set(plan.groups)
        for groups in plan.groups.values():
            assert sorted(r for group in groups for r in group) == list(range(plan.mesh.num_ranks))


def test_explain_counts_what_hand_tuned_engines_issue() -> None:
    text = explain(plan_of(LLAMA70B, Layout("tp=8"), torch.bfloat16), tokens=64)
    assert "a layer (layer_0): 2 all_reduce; " in text
    assert "a step: 1 all_gather, 161 all_reduce; " in text
    payload = 64 * 8192 * 2
    assert f"{payload / 1e6:.4g} MB, {payload * 2 * 7 / 8 / 1e6:.4g} MB on the wire" in text
    assert "the sum owed since attention.py:" in text
    assert "cheaper: a sampler that takes 'm v@tp'" in text
    sequence = Layout("tp=8", types={"Hidden": "n@tp d"})
    text = explain(plan_of(LLAMA70B, sequence, torch.bfloat16), tokens=64)
    assert "a layer (layer_0): 2 all_gather, 2 reduce_scatter; " in text
    assert "a step: 161 all_gather, 1 all_reduce, 161 reduce_scatter; " in text
    assert "pinned by Hidden 'n@tp d' of stream.py:" in text
    assert "no collectives" in explain(plan_of(SMOLLM2, Layout()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_emitted_text_issues_the_verified_collectives(layout: str) -> None:
    """Read the collectives back from the text: the verifier saw these, in this order."""
    plan = plan_of({**SIZES, "rope_parameters": ROPE3}, LAYOUTS[layout])
    written = {
        function.name: [
            (call.func.attr, *(arg.value for arg in call.args if isinstance(arg, ast.Constant)))
            for node in function.body
            for call in ast.walk(node)
            if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr in ("all_reduce", "all_gather", "reduce_scatter")
        ]
        for function in ast.parse(plan.source).body
        if isinstance(function, ast.FunctionDef)
    }
    verified = {
        code.name: [
            (
                step.kind,
                plan.mesh.group(step.axes),
                *(() if step.dim is None else (step.dim,)),
                *(() if step.operand.spec.reduce == "sum" else (step.operand.spec.reduce,)),
            )
            for step in code.steps
            if isinstance(step, Move) and step.kind not in LOCAL
        ]
        for code in (*plan.program.blocks, plan.program.driver)
    }
    assert written == verified


# Layers, d, query heads, kv heads, head dim, f, v; all-reduces a step in pure tensor parallelism,
# as vLLM, SGLang and Megatron issue them: two a layer, and one for the embedding.
RELEASED = {
    "SmolLM2-135M": (30, 576, 9, 3, 64, 1536, 49152, 3, 61),
    "SmolLM2-1.7B": (24, 2048, 32, 32, 64, 8192, 49152, 8, 49),
    "Llama-3.2-1B": (16, 2048, 32, 8, 64, 8192, 128256, 8, 33),
    "Llama-3.1-8B": (32, 4096, 32, 8, 128, 14336, 128256, 8, 65),
    "Llama-3.1-70B": (80, 8192, 64, 8, 128, 28672, 128256, 8, 161),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_need_no_more_than_hand_written_ones(name: str) -> None:
    layers, d, heads, kv_heads, head_dim, f, v, tp, expected = RELEASED[name]
    hf = dict(
        hidden_size=d,
        intermediate_size=f,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=v,
    )
    plan = plan_of(hf, Layout(f"tp={tp}"), torch.bfloat16)
    counts: dict[str, int] = {}
    wire = 0
    for move, times in moves(plan.program.driver):
        counts[move.kind] = counts.get(move.kind, 0) + times
        wire += times * cost(move, plan.mesh, {"n": 1, "m": 1}).wire
    assert counts == {"all_reduce": expected, "all_gather": 1}
    reduced = expected * 2 * (d * 2 * (tp - 1) // tp)
    gathered = v * 2 * (tp - 1) // tp
    assert wire == pytest.approx(reduced + gathered, rel=1e-3)
