# SPDX-License-Identifier: MIT
"""`tokenspeed explain` by its command line, run here: most of a process is torch's import."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from test_collective_counts import DEEPSEEK_V3

from tokenspeed_core.__main__ import main


@attrs.frozen
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


Explained = Callable[..., Done]


@pytest.fixture
def explained(capfd: pytest.CaptureFixture[str]) -> Explained:
    def run(*arguments: str) -> Done:
        capfd.readouterr()
        return Done(main(["explain", *arguments]), *capfd.readouterr())

    return run


def one_line(done: Done) -> str:
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_explain_works_on_a_config_without_weights(tmp_path: Path, explained: Explained) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 256,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    tp = explained(str(tmp_path), "--tp", "4")
    assert "a layer (layer_0): 2 all_reduce" in tp.stdout
    sp = explained(str(tmp_path / "config.json"), "--tp", "4", "--sp")
    assert "a layer (layer_0): 2 all_gather, 2 reduce_scatter" in sp.stdout
    typed = explained(str(tmp_path), "--mesh", "tp=4", "--type", "Hidden=n@tp d")
    assert typed.stdout == sp.stdout
    bad = explained(str(tmp_path), "--tp", "3")
    assert (bad.returncode, "choose tp from" in bad.stderr) == (1, True)
    assert "Traceback" not in bad.stderr
    for word in ("--place", "'k'"):
        assert word in one_line(explained(str(tmp_path), "--place", "k"))
    shown = explained(str(tmp_path), "--layout", "tp=4", "--diff", "tp=2; k:")
    assert "- tp=4" in shown.stdout
    page = tmp_path / "plan.html"
    explained(str(tmp_path), "--tp", "2", "--html", str(page))
    assert page.read_text().startswith("<!doctype html>")


def test_explain_counts_parents_where_layers_keep_different_pasts(
    tmp_path: Path, explained: Explained
) -> None:
    config = {
        "architectures": ["GptOssForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 256,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    turns = explained(str(tmp_path)).stdout
    assert "layer_0, layer_1 in turn over layers 0..3" in turns, "no line for each layer"
    shown = explained(str(tmp_path), "--memory", "--max-model-len", "1024")
    # 64 full blocks, 3 that a window of 32 tokens touches, and scratch.
    assert "68 parents of 4.096 KB" in shown.stdout, shown.stderr


def test_explain_reads_a_family_from_a_file(tmp_path: Path, explained: Explained) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from tokenspeed_core.models import family_of\n"
        "FAMILY = family_of('LlamaForCausalLM')\n"
        "CONFIG = dict(hidden_size=64, intermediate_size=128, num_attention_heads=8,\n"
        "              num_hidden_layers=2, vocab_size=256)\n"
    )
    done = explained(str(file), "--tp", "2", "--why", "q")
    assert "layer_0.q: n k@tp g h" in done.stdout, done.stderr
    file.write_text("")
    line = one_line(explained(str(file)))
    assert "mine.py" in line
    assert "FAMILY = " in line


def test_more_ranks_than_kv_heads_are_shown_the_way(tmp_path: Path, explained: Explained) -> None:
    """The layout that the error offers is one that works."""
    config = {"architectures": ["DeepseekV3ForCausalLM"], **DEEPSEEK_V3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mla = explained(str(tmp_path), "--tp", "256")
    assert "share" not in mla.stderr, "latent attention has no groups of query heads"
    file = tmp_path / "mine.py"
    file.write_text(
        "from tokenspeed_core.models import family_of\n"
        "FAMILY = family_of('LlamaForCausalLM')\n"
        "CONFIG = dict(hidden_size=64, intermediate_size=128, num_attention_heads=8,\n"
        "              num_key_value_heads=2, num_hidden_layers=2, vocab_size=256)\n"
    )
    refused = explained(str(file), "--tp", "4").stderr
    fixes = re.findall(r"let k and (\w) share tp: '([^']+)'", refused)
    assert fixes == [("g", "tp=(part=2,rep=2); k:part g:rep")], refused
    assert explained(str(file), "--layout", fixes[0][1]).returncode == 0


def test_explain_tells_the_plans_of_all_sizes_apart(tmp_path: Path, explained: Explained) -> None:
    config = {"architectures": ["DeepseekV3ForCausalLM"], **DEEPSEEK_V3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    layout = "dp=8 tp=8; f: j: e:dp+tp requests:dp; Hidden=n@tp d; Tokens=n@tp d"
    asked = (str(tmp_path), "--layout", layout, "--sizes", "--tokens", "8192")
    paragraphs = explained(*asked).stdout.split("steps of ")[1:]
    assert paragraphs[0].startswith("1 to ")
    assert "1 started early" in paragraphs[0]
    assert " to 8192 tokens" in paragraphs[-1]
    assert "sent to the ranks of their experts" in paragraphs[-1]
    slow = explained(*asked, "--link", "ethernet-100g").stdout
    assert slow.split("steps of ")[1:] != paragraphs, "links decide"


def test_gathers_in_one_collective_are_shown_as_one(tmp_path: Path, explained: Explained) -> None:
    config = {"architectures": ["DeepseekV3ForCausalLM"], **DEEPSEEK_V3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shown = explained(str(tmp_path), "--tp", "8", "--sp")
    assert shown.stdout.count(", with the one above") == 4  # two latents in either kind of layer
    assert "a layer (layer_0): 2 all_gather, 2 reduce_scatter" in shown.stdout
    table = explained(str(tmp_path), "--tp", "8", "--sp", "--collectives").stdout
    assert table.count("  with it ") == 4
