# SPDX-License-Identifier: MIT
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tokenspeed_core.checkpoint import Checkpoint, CheckpointError, open_checkpoint


def tiny_model(tie: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=50,
            tie_word_embeddings=tie,
        )
    ).to(torch.bfloat16)


@pytest.fixture(scope="module", params=["1GB", "20KB"], ids=["single", "sharded"])
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, LlamaForCausalLM]:
    directory = tmp_path_factory.mktemp("model")
    model = tiny_model()
    model.save_pretrained(directory, max_shard_size=request.param)
    shards = len(list(directory.glob("*.safetensors")))
    assert (shards > 1) == (request.param == "20KB")
    return directory, model


@pytest.fixture(scope="module")
def opened(saved: tuple[Path, LlamaForCausalLM]) -> Checkpoint:
    return open_checkpoint(saved[0])


def test_every_tensor_comes_back_in_its_dtype(saved: tuple[Path, LlamaForCausalLM]) -> None:
    directory, model = saved
    with open_checkpoint(directory) as checkpoint:
        assert set(checkpoint.names) == set(model.state_dict())
        for name, tensor in model.state_dict().items():
            assert checkpoint.shape(name) == tuple(tensor.shape)
            assert checkpoint.dtype(name) == torch.bfloat16
            assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.config == json.loads((directory / "config.json").read_text())


@settings(deadline=None)
@given(data=st.data())
def test_a_slice_equals_the_slice_of_the_whole(opened: Checkpoint, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(opened.names)))
    bound = st.none() | st.integers(-70, 70)
    dimensions = len(opened.shape(name))
    index = tuple(data.draw(st.lists(st.builds(slice, bound, bound), max_size=dimensions)))
    read = opened.read(name, index)
    assert read.is_contiguous()
    assert torch.equal(read, opened.read(name)[index])


def test_tensors_outlive_the_checkpoint(saved: tuple[Path, LlamaForCausalLM]) -> None:
    name = "model.embed_tokens.weight"
    with open_checkpoint(saved[0]) as checkpoint:
        whole, part = checkpoint.read(name), checkpoint.read(name, (slice(3, 9),))
    assert torch.equal(whole, saved[1].state_dict()[name])
    assert torch.equal(part, whole[3:9])


def test_dtypes_and_scalars(tmp_path: Path) -> None:
    tensors = {
        "scale": torch.tensor(2.5),
        "half": torch.ones(2, 3, dtype=torch.float16),
        "fp8": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "packed": torch.arange(6, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(tmp_path) as checkpoint:
        for name, tensor in tensors.items():
            read = checkpoint.read(name)
            assert read.dtype == checkpoint.dtype(name) == tensor.dtype
            assert read.shape == tensor.shape
            assert torch.equal(read.float(), tensor.float())


def test_a_head_that_is_not_stored_is_tied(tmp_path: Path) -> None:
    tiny_model(tie=True).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open_checkpoint(tmp_path) as checkpoint:
        assert "lm_head.weight" not in checkpoint.names
        assert checkpoint.config["tie_word_embeddings"] is True


def first_shard(directory: Path) -> Path:
    return min(directory.glob("model-*.safetensors"))


def truncate_shard(directory: Path) -> None:
    shard = first_shard(directory)
    shard.write_bytes(shard.read_bytes()[:-100])


def pointer_instead_of_shard(directory: Path) -> None:
    first_shard(directory).write_text("version https://git-lfs.github.com/spec/v1\n")


def index_names_too_much(directory: Path) -> None:
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.ghost.weight"] = first_shard(directory).name
    path.write_text(json.dumps(index))


def index_leads_elsewhere(directory: Path) -> None:
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (index_leads_elsewhere, ["index.json", "../elsewhere.safetensors"]),
        (truncate_shard, ["model-00001", "download it again"]),
        (pointer_instead_of_shard, ["model-00001", "download it again"]),
        (lambda d: first_shard(d).unlink(), ["model-00001", "missing"]),
        (index_names_too_much, ["model-00001", "model.ghost.weight"]),
        (lambda d: (d / "model.safetensors.index.json").write_text("{"), ["index.json", "JSON"]),
        (lambda d: (d / "model.safetensors.index.json").write_text("{}"), ["weight_map"]),
        (lambda d: (d / "config.json").unlink(), ["config.json", "missing"]),
        (lambda d: (d / "config.json").write_text("[]"), ["config.json", "object"]),
    ],
)
def test_damage_is_one_line_that_names_the_file(
    tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
    damage(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(tmp_path)
    message = str(refused.value)
    assert all(word in message for word in [str(tmp_path), *words])
    assert "\n" not in message


def test_a_tensor_that_is_not_there_names_its_neighbours(opened: Checkpoint) -> None:
    asked = "model.layers.0.self_attn.q_proj.bias"
    with pytest.raises(CheckpointError, match=r"q_proj\.bias.*q_proj\.weight"):
        opened.read(asked)
    with pytest.raises(CheckpointError, match="q_proj"):
        opened.shape(asked)


def test_slices_that_no_tensor_has(opened: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="step 2"):
        opened.read("model.norm.weight", (slice(0, 8, 2),))
    with pytest.raises(CheckpointError, match=r"2 slices.*\[32\]"):
        opened.read("model.norm.weight", (slice(None), slice(None)))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    torch.save({"x": torch.ones(1)}, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match=rf"{name}.*pickled.*safetensors"):
            open_checkpoint(path)


def test_places_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(__file__, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"2 GGUF files.*a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)
    (tmp_path / "b.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"a\.gguf.*LFS"):
        open_checkpoint(tmp_path)


def test_looking_at_the_configuration_does_not_load_torch(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
    code = (
        "import sys; from tokenspeed_core.checkpoint import open_checkpoint\n"
        f"checkpoint = open_checkpoint({str(tmp_path)!r})\n"
        "assert checkpoint.config['vocab_size'] == 50\n"
        "assert checkpoint.shape('model.norm.weight') == (32,)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
