# SPDX-License-Identifier: MIT
"""The emitted file: it passes the linters, runs alone, and is verified again from its text."""

import os
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from tiny import BLOCK, CASES, LAYOUTS, batch_of, make_tiny

from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.sharding import Layout, Plan, VerificationError
from tokenspeed_core.sharding.composite import FORMS
from tokenspeed_core.sharding.layout_text import parse_layout
from tokenspeed_core.sharding.recheck import recheck

CONFIG = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    vocab_size=256,
    attention_bias=True,
)
TEXTS = (
    "tp=1",
    "tp=4",
    "tp=4; Hidden=n@tp d",
    "tp=(kv=2,rep=2); k:kv g:rep",
    "tp=(kv=2,rep=2); k:kv g:rep; Hidden=n@tp d",
    "dp=2 tp=2; v:; Hidden=n@dp+tp d",
)


def plan_of(text: str, name: str = "LlamaForCausalLM", composites: Collection[str] = ()) -> Plan:
    family = family_of(name)
    return compile_plan(
        family,
        family.config({**CONFIG, "attention_bias": not composites}),
        parse_layout(text),
        dtype=torch.bfloat16,
        block_size=16,
        composites=composites,
    )


@pytest.fixture(scope="module", params=TEXTS)
def plan(request: pytest.FixtureRequest) -> Plan:
    return plan_of(request.param)


def test_the_emitted_text_verifies_again(plan: Plan) -> None:
    recheck(plan, plan.source)


def test_every_dropped_collective_is_refused_on_a_line_of_the_text(plan: Plan) -> None:
    lines = plan.source.splitlines(keepends=True)
    calls = [n for n, line in enumerate(lines) if re.search(r" = c\.\w+\(", line)]
    assert bool(calls) == (plan.mesh.num_ranks > 1)
    for number in calls:
        found = re.match(r"( +\w+) = c\.\w+\((\w+),", lines[number])
        assert found
        edited = [*lines]
        edited[number] = f"{found[1]} = {found[2]}\n"
        with pytest.raises(VerificationError, match=r"^program\.py:\d+: "):
            recheck(plan, "".join(edited), "program.py")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("c.all_reduce(update, ", "c.all_reduce(residual, "),
        ('c.rank("tp") * 64', 'c.rank("tp") * 32'),
        ('c.rank("tp") * 64', "0"),
        ('w["attn.wo"]', 'w["mlp.w_down"]'),
        ("attn_norm", "attn.bq"),
    ],
)
def test_a_wrong_edit_is_refused(before: str, after: str) -> None:
    plan = plan_of("tp=4")
    assert before in plan.source
    with pytest.raises(VerificationError, match=r"program\.py:\d+"):
        recheck(plan, plan.source.replace(before, after, 1), "program.py")


def test_a_right_edit_is_accepted() -> None:
    """A scatter and a gather instead of a reduction: other words for the same sum."""
    plan = plan_of("tp=4")
    edited = re.sub(
        r'c\.all_reduce\((\w+), "tp"\)',
        r'c.all_gather(c.reduce_scatter(\1, "tp", 1), "tp", 1)',
        plan.source,
        count=1,
    )
    assert edited != plan.source
    recheck(plan, edited)


def special(routed: bool) -> Plan:
    """A plan whose text dispatches rows to experts, or merges shares of attention."""
    family = family_of("Qwen3MoeForCausalLM" if routed else "LlamaForCausalLM")
    layout = (
        Layout("dp=2 tp=1", place={"j": "", "e": "dp"}, requests="dp")
        if routed
        else Layout("tp=1 cp=2", place={"s": "cp"})
    )
    sizes = {k: v for k, v in CONFIG.items() if k != "attention_bias" or not routed}
    moe = dict(moe_intermediate_size=16, num_experts=8, num_experts_per_tok=3, head_dim=16)
    return compile_plan(
        family,
        family.config({**sizes, **(moe if routed else {})}),
        layout,
        dtype=torch.bfloat16,
        block_size=16,
        tokens=1 << 20,
    )


@pytest.mark.parametrize(
    ("routed", "before", "after"),
    [
        (True, ', "dp", 4)', ', "dp", 2)'),
        (True, 'c.rank("dp") * 4', 'c.rank("dp") * 8'),
        (True, 'c.combine(x_3, x_2_trip, "dp")', 'c.reduce_scatter(x_3, "dp", 0)'),
        (True, "c.dispatch(x_1, ids, weights", "c.dispatch(x_1, weights, ids"),
        (False, 'c.rank("cp"), 2)', 'c.rank("cp"), 1)'),
        (False, 'c.rank("cp"), 2)', "0, 2)"),
        (False, "c.merge(", "c.all_reduce("),
        (False, '"cp", "bfloat16")', '"cp", "float32")'),
    ],
)
def test_routed_rows_and_merged_shares_verify_again(routed: bool, before: str, after: str) -> None:
    plan = special(routed)
    recheck(plan, plan.source)
    assert before in plan.source
    edited = plan.source.replace(before, after, 1)
    with pytest.raises((VerificationError, TypeError), match=r"program\.py:\d+|argument"):
        recheck(plan, edited, "program.py")


def test_the_emitted_text_passes_ruff_and_mypy(tmp_path: Path) -> None:
    files = []
    for index, text in enumerate(TEXTS):
        files.append(str(tmp_path / f"program_{index}.py"))
        Path(files[-1]).write_text(plan_of(text).source)
        files.append(str(tmp_path / f"composed_{index}.py"))
        Path(files[-1]).write_text(plan_of(text, "Qwen3ForCausalLM", FORMS).source)
    rules = ["--isolated", "--line-length", "100", "--select", "E,F,I,B,UP,PT,D100,D103"]
    options = ["--config-file=", "--strict", "--follow-imports=skip"]
    for command in (["ruff", "check", *rules], ["mypy", *options, "--cache-dir", str(tmp_path)]):
        done = subprocess.run(
            [sys.executable, "-m", *command, *files], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_emitted_file_runs_alone(tmp_path: Path) -> None:
    """A process that has the file, the weights and the ops, and no plan."""
    tiny = make_tiny(CASES["gqa"])
    plan = compile_plan(
        tiny.family, tiny.config, LAYOUTS["tp1"], dtype=torch.float32, block_size=BLOCK
    )
    (tmp_path / "program.py").write_text(plan.source)
    ids = tiny.tokens[0][:9]
    weights = plan.weights(plan.place(tiny.params, 0))
    torch.save((weights, plan.allocate_caches(17), batch_of([(ids, 0, 0)])), tmp_path / "in.pt")
    code = (
        "import torch, program\n"
        "w, caches, batch = torch.load('in.pt', weights_only=False)\n"
        "torch.save(program.forward(None, w, caches, batch)[0], 'out.pt')\n"
    )
    paths = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=paths)
    logits = torch.load(tmp_path / "out.pt")
    assert (logits[0] - tiny.expected(0)[8]).abs().max() < 1e-4
