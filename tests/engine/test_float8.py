# SPDX-License-Identifier: MIT
"""Engines in float8: caches, matrices made on loading, and checkpoints that are stored in it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.local_engine import LocalEngine, Request
from tests.engine.test_ranks import real_of
from tokenspeed_core.checkpoint import CheckpointError, open_checkpoint
from tokenspeed_core.config import ConfigError, EngineConfig
from tokenspeed_core.kernels.float8 import FLOAT8, Float8Matrix
from tokenspeed_core.rank import load_rank

PROMPT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 30, 2, 198, 1, 4093, 198]
LENGTH = 6


def config(model: Path, **settings: object) -> EngineConfig:
    return EngineConfig(
        model=str(model), dtype="fp32", num_blocks=100, max_running=8, max_step_tokens=32,
        **settings,
    )  # type: ignore[arg-type]  # fmt: skip


def logprobs(settings: EngineConfig, prompt: list[int]) -> tuple[list[int], list[float]]:
    engine = LocalEngine(load_rank(settings, 0, ""), max_step_tokens=32)
    found = engine.submit(Request(prompt, LENGTH, logprobs=True))
    engine.run()
    return found.tokens, found.logprobs


@pytest.fixture(scope="module")
def precise(smollm2: Path) -> tuple[list[int], list[float]]:
    return logprobs(config(smollm2), PROMPT)


@pytest.mark.parametrize(
    ("settings", "apart"),
    [({"kv_cache": "fp8"}, 0.3), ({"weights": "fp8"}, 0.3), ({"weights": "fp8-block"}, 0.4)],
)
def test_smollm2_answers_nearly_as_in_full_precision(
    smollm2: Path,
    precise: tuple[list[int], list[float]],
    settings: dict[str, str],
    apart: float,
) -> None:
    tokens, values = precise
    got, near = logprobs(config(smollm2, **settings), PROMPT)
    same = next((n for n, (a, b) in enumerate(zip(tokens, got, strict=True)) if a != b), LENGTH)
    assert same >= 2
    worst = max(abs(a - b) for a, b in zip(values[:same], near[:same], strict=True))
    assert 1e-6 < worst < apart


def test_a_cache_in_float8_takes_half_the_memory_of_bfloat16(smollm2: Path) -> None:
    sizes = [
        load_rank(config(smollm2, kv_cache=kind), 0, "").groups.parent_bytes
        for kind in ("bf16", "fp8")
    ]
    assert sizes[0] == 2 * sizes[1]


def test_real_ranks_in_float8(tiny_llama: Path) -> None:
    settings = config(tiny_llama, tp=2, weights="fp8", kv_cache="fp8")
    prompts = [[5, 17, 60, 3], [9] * 20]
    assert [len(tokens) for tokens in real_of(settings, prompts, 8)] == [8, 8]


def stored_in_float8(source: Path, target: Path, block: tuple[int, int] | None) -> Path:
    """Write a model's layers in float8: with scales by blocks as DeepSeek's, or by outputs."""
    target.mkdir()
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if ".layers." not in name or tensor.dim() < 2:
            tensors[name] = tensor
            continue
        matrix = Float8Matrix.of(tensor, block or (1, tensor.shape[1]))
        tensors[name] = matrix.data
        tensors[f"{name}_scale_inv" if block else f"{name}_scale"] = matrix.scale
    save_file(tensors, target / "model.safetensors")
    about = json.loads((source / "config.json").read_text())
    about["quantization_config"] = {"quant_method": "fp8"}
    if block:
        about["quantization_config"]["weight_block_size"] = list(block)
    (target / "config.json").write_text(json.dumps(about))
    return target


@pytest.mark.parametrize("block", [None, (32, 48)], ids=["outputs", "blocks"])
def test_a_checkpoint_in_float8_is_read_as_what_it_stands_for(
    tiny_llama: Path, tmp_path: Path, block: tuple[int, int] | None
) -> None:
    path = stored_in_float8(tiny_llama, tmp_path / "narrow", block)
    name = "model.layers.0.mlp.down_proj.weight"
    with open_checkpoint(tiny_llama) as plain, open_checkpoint(path) as narrow:
        assert sorted(narrow.names) == sorted(plain.names)
        whole = plain.read(name)
        want = Float8Matrix.of(whole, block or (1, whole.shape[1])).dequantised(torch.float32)
        assert narrow.dtype(name) == torch.float32
        assert torch.equal(narrow.read(name), want)
        window = (slice(3, 50), slice(31, 77))
        assert torch.equal(narrow.read(name, window), want[window])
    if block is None:
        # Kept in eight bits or multiplied out: the same model.
        kept = logprobs(config(path), [5, 17, 60, 3])
        plain = logprobs(config(path, weights="plain"), [5, 17, 60, 3])
        assert kept[0] == plain[0]
        runner = load_rank(config(path), 0, "")
        assert any(tensor.dtype == FLOAT8 for tensor in runner.packs)


def test_other_quantisations_are_refused_by_name(tiny_llama: Path, tmp_path: Path) -> None:
    path = stored_in_float8(tiny_llama, tmp_path / "narrow", None)
    about = json.loads((path / "config.json").read_text())
    about["quantization_config"] = {"quant_method": "mxfp4"}
    (path / "config.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="'mxfp4'"):
        open_checkpoint(path)


def test_kernels_that_are_asked_for_must_be_legal(tiny_llama: Path) -> None:
    load_rank(config(tiny_llama, kernels="linear=torch, tuned"), 0, "")
    with pytest.raises(ConfigError, match="from backend 'nobody'"):
        load_rank(config(tiny_llama, kernels="linear=nobody"), 0, "")
    with pytest.raises(ConfigError, match="neither OP=BACKEND nor tuned"):
        load_rank(config(tiny_llama, kernels="linear"), 0, "")
    load_rank(config(tiny_llama), 0, "")  # which asks for none again
