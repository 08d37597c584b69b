# SPDX-License-Identifier: MIT
"""`tokenspeed check`: it passes what is right, and says what is wrong."""

import re
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from tests.engine.local_engine import LocalEngine, Request
from tokenspeed_core.__main__ import main
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.finding import Finding
from tokenspeed_core.model_check import _regions, check
from tokenspeed_core.model_definition import ModelDefinition, define
from tokenspeed_core.models import ConfigError, family_of
from tokenspeed_core.ops import Batch, declared_batch, take_rows
from tokenspeed_core.oracle import OracleError
from tokenspeed_core.rank import load_rank
from tokenspeed_core.sharding import Placed, declare, local, module, trace


@module
class Weights:
    table: Placed[Tensor, "d d2"]
    w: Placed[Tensor, "d2@tp"]


CONFIG = dict(
    model_type="qwen3_moe",
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_hidden_layers=2,
    num_experts=8,
    num_experts_per_tok=3,
    norm_topk_prob=True,
    vocab_size=96,
    max_position_embeddings=256,
)
FAMILY = family_of("Qwen3MoeForCausalLM")


def failures(definition: ModelDefinition) -> list[Finding]:
    return [finding for finding in check(definition) if not finding.holds]


def test_a_right_family_holds_on_every_mesh() -> None:
    found = list(check(ModelDefinition(FAMILY, CONFIG)))
    assert all(finding.holds for finding in found), "\n".join(map(str, found))
    assert sum("in float64" in finding.detail for finding in found) >= 4


def test_another_number_than_transformers_fails() -> None:
    wrong = attrs.evolve(FAMILY, config=lambda raw: FAMILY.config({**raw, "rms_norm_eps": 0.1}))
    (finding,) = failures(ModelDefinition(wrong, CONFIG))
    assert "equal transformers'" in finding.what


def test_a_name_that_is_missing_fails() -> None:
    wrong = attrs.evolve(
        FAMILY,
        hf=lambda config: {k: v for k, v in FAMILY.hf(config).items() if k != "norm"},
    )
    (finding,) = failures(ModelDefinition(wrong, CONFIG))
    assert finding.detail == "norm"


def test_a_write_to_a_parameter_fails() -> None:
    def forward(p: object, caches: object, batch: Batch, config: object) -> object:
        if isinstance(p.norm, torch.Tensor):  # type: ignore[attr-defined]
            p.norm.mul_(1.0)  # type: ignore[attr-defined]
        return FAMILY.forward(p, caches, batch, config)

    wrong = attrs.evolve(FAMILY, forward=forward)
    (finding,) = failures(ModelDefinition(wrong, CONFIG))
    assert "writes norm" in finding.detail


@local("n d, d@tp -> n d@tp")
def shifted(x: Tensor, w: Tensor) -> Tensor:
    """A region that claims a shard of what it takes whole, and gives all of it."""
    return x + w.mean()


def test_a_region_that_is_not_what_it_declares_fails() -> None:
    declared = (
        declare(Weights, {"d": 8, "d2": 8}, torch.float32),
        (),
        declared_batch(),
    )
    traced = trace(
        lambda p, caches, batch: (shifted(take_rows(p.table, batch.tokens), p.w), caches), *declared
    )
    (finding,) = _regions(traced)
    assert not finding.holds
    assert finding.what == "local region shifted is what it declares"


def test_a_config_that_transformers_does_not_know_is_refused() -> None:
    unknown = {**CONFIG, "model_type": "nothing"}
    with pytest.raises(OracleError, match="model_type"):
        failures(ModelDefinition(FAMILY, unknown))


def test_the_command_prints_each_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from tokenspeed_core.models import family_of\n"
        "FAMILY = family_of('Qwen3MoeForCausalLM')\n"
        f"CONFIG = {CONFIG!r}\n"
    )
    assert main(["check", str(file), "--against", "hf"]) == 0
    assert capsys.readouterr().out.endswith("all hold\n")


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the guide has its reader write."""
    text = (Path(__file__).parents[2] / "models" / "WRITE_YOUR_OWN.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    file = tmp_path_factory.mktemp("guide") / "mistral.py"
    file.write_text(code)
    return file


def test_the_model_of_the_guide_holds(guide: Path) -> None:
    found = list(check(define(str(guide))))
    assert all(finding.holds for finding in found), "\n".join(map(str, found))
    assert len(found) > 5


def test_the_model_of_the_guide_is_served(guide: Path, tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(3)
    sizes = {k: v for k, v in define(str(guide)).stored.items() if k != "model_type"}
    oracle = MistralForCausalLM(MistralConfig(**sizes)).float().eval()
    oracle.save_pretrained(tmp_path)
    settings = dict(model=str(tmp_path), dtype="fp32", num_blocks=20, max_running=2)
    with pytest.raises(ConfigError, match="MistralForCausalLM"):
        load_rank(EngineConfig(**settings), 0, "")
    engine = LocalEngine(load_rank(EngineConfig(**settings, family=str(guide)), 0, ""))
    prompt = [5, 17, 42, 8, 91, 3]
    found = engine.submit(Request(prompt, 8))
    engine.run()
    tokens = [*prompt]
    for _ in range(8):
        with torch.no_grad():
            tokens.append(int(oracle(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert found.tokens == tokens[len(prompt) :]
