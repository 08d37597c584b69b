# SPDX-License-Identifier: MIT
"""Every plan of every family can be looked at, and verifies again from its text."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_families import CASES, FAMILIES, layouts

from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.sharding import Layout, Plan, VerificationError, explain
from tokenspeed_core.sharding.difference import difference
from tokenspeed_core.sharding.explain import step_sizes
from tokenspeed_core.sharding.link import Links
from tokenspeed_core.sharding.memory import memory
from tokenspeed_core.sharding.page import page
from tokenspeed_core.sharding.provenance import values, why
from tokenspeed_core.sharding.recheck import recheck

TOKENS = step_sizes(64, 4)


def plan_of(name: str, layout: Layout) -> Plan:
    from transformers import AutoModelForCausalLM

    config = FAMILIES[name]()
    with torch.device("meta"):
        architecture = type(AutoModelForCausalLM.from_config(config)).__name__
    family = family_of(architecture)
    return compile_plan(
        family, family.config(config.to_dict()), layout, dtype=torch.float32, block_size=4
    )


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_a_plan_verifies_again_from_its_text(name: str, layout: str) -> None:
    plan = plan_of(name, layouts(name)[layout])
    try:
        recheck(plan, plan.source)
    except VerificationError as error:
        if (name, layout) == ("gpt-oss", "experts-by-both") and "in two steps" in str(error):
            pytest.xfail("the embedding's sum is paid over rep before the layers, over kv in them")
        raise


@pytest.mark.parametrize("name", FAMILIES)
def test_a_plan_can_be_looked_at(name: str) -> None:
    first, *_, last = (plan_of(name, layout) for layout in layouts(name).values())
    assert "a step: " in explain(last, tokens=64)
    assert memory(last, tokens=TOKENS, blocks=9).total > 0
    text = page([first, last], tokens=TOKENS, links=Links(), blocks=9)
    assert text.count('<section class="plan">') == 2
    shown = difference(first, last, tokens=TOKENS, links=Links(), blocks=9)
    assert shown.count("a rank: weights") == 2
    for code in (*last.program.blocks, last.program.driver):
        for var in values(code):
            assert f"{code.name}.{var}" in why(last.program, f"{code.name}.{var.name}")


def test_every_emitted_file_passes_ruff_and_mypy(tmp_path: Path) -> None:
    files = []
    for name, layout in CASES:
        files.append(tmp_path / f"{name}_{layout}".replace("-", "_").replace(".", "_"))
        files[-1] = files[-1].with_suffix(".py")
        files[-1].write_text(plan_of(name, layouts(name)[layout]).source)
    ruff = ["ruff", "check", "--isolated", "--line-length", "100", "--select", "E,F,I,B,UP,PT"]
    mypy = [
        "mypy",
        "--config-file=",
        "--strict",
        "--follow-imports=skip",
        "--cache-dir",
    ]
    for command in (ruff, [*mypy, str(tmp_path / "cache")]):
        done = subprocess.run(
            [sys.executable, "-m", *command, *map(str, files)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
