# SPDX-License-Identifier: MIT
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tokenspeed_core.checkpoint import Checkpoint, CheckpointError, open_checkpoint

QUANTISED = [Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q4_K, Type.Q6_K]
PLAIN = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}
HEADS, KV_HEADS, HEAD_DIM, WIDTH, FFN, VOCAB = 4, 2, 64, 256, 512, 96
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def writer(path: Path, arch: str = "llama") -> gguf.GGUFWriter:
    file = gguf.GGUFWriter(path, arch)
    file.add_block_count(1)
    file.add_context_length(512)
    file.add_embedding_length(WIDTH)
    file.add_feed_forward_length(FFN)
    file.add_head_count(HEADS)
    file.add_head_count_kv(KV_HEADS)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_dimension_count(HEAD_DIM)
    file.add_rope_freq_base(500000.0)
    file.add_eos_token_id(2)
    return file


def finish(file: gguf.GGUFWriter) -> None:
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def random_blocks(shape: tuple[int, int], kind: Type, rng: np.random.Generator) -> np.ndarray:
    """Stored bytes of a random tensor; K types, which gguf cannot quantise, as random blocks."""
    values = rng.standard_normal(shape, dtype=np.float32)
    if kind not in (Type.Q4_K, Type.Q6_K):
        return gguf.quantize(values, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
    scales = {Type.Q4_K: [0, 2], Type.Q6_K: [size - 2]}[kind]
    for at in scales:  # finite float16 scales
        blocks[..., at : at + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    return blocks.reshape(shape[0], -1)


def tiny_file(path: Path, kind: Type) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(int(kind))
    stored = {
        "token_embd.weight": random_blocks((VOCAB, WIDTH), kind, rng),
        "blk.0.attn_q.weight": random_blocks((HEADS * HEAD_DIM, WIDTH), kind, rng),
        "blk.0.attn_k.weight": random_blocks((KV_HEADS * HEAD_DIM, WIDTH), kind, rng),
        "blk.0.ffn_down.weight": random_blocks((WIDTH, FFN), kind, rng),
    }
    file = writer(path)
    for name, data in stored.items():
        file.add_tensor(name, data, raw_dtype=kind)
    finish(file)
    return stored


def llama(rope: dict[str, Any], tie: bool, bias: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=FFN,
            num_hidden_layers=1,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            vocab_size=VOCAB,
            rms_norm_eps=1e-5,
            max_position_embeddings=512,
            rope_parameters=rope,
            tie_word_embeddings=tie,
            attention_bias=bias,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def gguf_name(name: str) -> str:
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, kind = name.rsplit(".", 1)
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem):
        return f"blk.{match[1]}.{LAYER_NAMES[match[2]]}.{kind}"
    return f"{outer[stem]}.{kind}"


def write_llama(path: Path, model: LlamaForCausalLM) -> None:
    """What llama.cpp's converter writes: q and k rows reordered for rotation of pairs."""
    file = writer(path)
    rotated = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        data = tensor.numpy()
        for part, heads in rotated.items():
            if part in name:
                halves = data.reshape(heads, 2, HEAD_DIM // 2, *data.shape[1:])
                data = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(data.shape)
        file.add_tensor(gguf_name(name), data)
    rope = model.config.rope_parameters
    if rope["rope_type"] == "llama3":
        plain = ROPE_INIT_FUNCTIONS["linear"](_with_rope(model, rope_type="linear", factor=1.0))[0]
        scaled = ROPE_INIT_FUNCTIONS["llama3"](model.config)[0]
        file.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
    finish(file)


def _with_rope(model: LlamaForCausalLM, **rope: Any) -> LlamaConfig:
    theta = model.config.rope_parameters["rope_theta"]
    return LlamaConfig(
        **{**model.config.to_dict(), "rope_parameters": {"rope_theta": theta, **rope}}
    )


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40)[None] * 2).logits


def model_of(checkpoint: Checkpoint) -> LlamaForCausalLM:
    """Rebuild the transformers model from what the checkpoint says alone."""
    model = LlamaForCausalLM(LlamaConfig(**checkpoint.config))
    state = {name: checkpoint.read(name).float() for name in checkpoint.names}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


DEFAULT = {"rope_type": "default", "rope_theta": 500000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("rope", [DEFAULT, LLAMA3], ids=["default", "llama3"])
@pytest.mark.parametrize(("tie", "bias"), [(True, False), (False, True)])
def test_llama_comes_back_bit_for_bit(
    tmp_path: Path, rope: dict[str, Any], tie: bool, bias: bool
) -> None:
    model = llama(rope, tie, bias)
    write_llama(tmp_path / "m.gguf", model)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        state = model.state_dict()
        if tie:
            state.pop("lm_head.weight")
        assert set(checkpoint.names) == set(state)
        for name, tensor in state.items():
            assert checkpoint.shape(name) == tuple(tensor.shape)
            assert torch.equal(checkpoint.read(name), tensor), name
        assert checkpoint.config["tie_word_embeddings"] is tie
        assert checkpoint.config["attention_bias"] is bias
        assert checkpoint.config["rope_parameters"] == rope
        assert torch.equal(logits(model_of(checkpoint)), logits(model))


def test_rope_divisors_of_no_release_become_an_equal_longrope(tmp_path: Path) -> None:
    model = llama({**LLAMA3, "original_max_position_embeddings": 777}, True, False)
    write_llama(tmp_path / "m.gguf", model)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        rope = checkpoint.config["rope_parameters"]
        assert isinstance(rope, dict)
        assert rope["rope_type"] == "longrope"
        inverse, scale = ROPE_INIT_FUNCTIONS["longrope"](LlamaConfig(**checkpoint.config))
        expected, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config)
        assert scale == 1.0
        torch.testing.assert_close(inverse, expected)


def test_smollm2_equals_transformers_own_reading(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It reads the file twice, and makes one map of names for each of its modules.
    for name in ("GGUFReader", "get_tensor_name_map"):
        monkeypatch.setattr(gguf, name, functools.cache(getattr(gguf, name)))
    oracle = AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    state = oracle.state_dict()
    with open_checkpoint(smollm2) as checkpoint:
        assert set(checkpoint.names) == set(state) - {"lm_head.weight"}
        for name in checkpoint.names:
            assert torch.equal(checkpoint.read(name), state[name]), name
        theirs = oracle.config.to_dict()
        for key, value in checkpoint.config.items():
            if key == "rms_norm_eps":
                assert value == 1e-5
                assert np.float32(value) == np.float32(theirs[key])
            elif key != "architectures":
                assert value == theirs[key], key
        assert checkpoint.config["architectures"] == ["LlamaForCausalLM"]


@pytest.fixture(scope="module", params=[*PLAIN, *QUANTISED], ids=lambda kind: kind.name)
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Type, dict[str, np.ndarray], Checkpoint]:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    stored = tiny_file(path, request.param)
    return request.param, stored, open_checkpoint(path)


def test_types_decode_as_the_gguf_library_does(
    tiny: tuple[Type, dict[str, np.ndarray], Checkpoint],
) -> None:
    kind, stored, checkpoint = tiny
    for name, ours in [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
    ]:
        expected = torch.from_numpy(gguf.dequantize(stored[name], kind).copy())
        read = checkpoint.read(ours)
        assert read.dtype == checkpoint.dtype(ours) == PLAIN.get(kind, torch.float32)
        assert torch.isfinite(expected).all()
        assert torch.equal(read.float(), expected)
    query = torch.from_numpy(gguf.dequantize(stored["blk.0.attn_q.weight"], kind).copy())
    halves = query.reshape(HEADS, HEAD_DIM // 2, 2, WIDTH).transpose(1, 2).reshape(-1, WIDTH)
    assert torch.equal(checkpoint.read("model.layers.0.self_attn.q_proj.weight").float(), halves)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_slice_equals_the_slice_of_the_whole(
    tiny: tuple[Type, dict[str, np.ndarray], Checkpoint], data: st.DataObject
) -> None:
    _, _, checkpoint = tiny
    name = data.draw(st.sampled_from(list(checkpoint.names)))
    bound = st.none() | st.integers(-600, 600)
    index = tuple(data.draw(st.lists(st.builds(slice, bound, bound), max_size=2)))
    read = checkpoint.read(name, index)
    expected = checkpoint.read(name)[index]
    assert read.is_contiguous()
    assert read.dtype == expected.dtype
    assert torch.equal(read, expected)


def test_tensors_outlive_the_checkpoint(tmp_path: Path) -> None:
    tiny_file(tmp_path / "m.gguf", Type.F32)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        tensor = checkpoint.read("model.embed_tokens.weight", (slice(0, 4),))
    copy = tensor.clone()
    (tmp_path / "m.gguf").write_bytes(b"")
    tensor += 1
    assert torch.equal(tensor, copy + 1)


def test_qwen3_keeps_its_row_order_and_norms(tmp_path: Path) -> None:
    file = writer(tmp_path / "m.gguf", "qwen3")
    file.add_key_length(HEAD_DIM)
    query = np.arange(HEADS * HEAD_DIM * WIDTH, dtype=np.float32).reshape(-1, WIDTH)
    file.add_tensor("token_embd.weight", np.ones((VOCAB, WIDTH), np.float32))
    file.add_tensor("blk.0.attn_q.weight", query)
    file.add_tensor("blk.0.attn_q_norm.weight", np.ones(HEAD_DIM, np.float32))
    finish(file)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        name = "model.layers.0.self_attn.q_proj.weight"
        assert torch.equal(checkpoint.read(name), torch.from_numpy(query))
        assert "model.layers.0.self_attn.q_norm.weight" in checkpoint.names
        assert checkpoint.config["architectures"] == ["Qwen3ForCausalLM"]
        assert checkpoint.config["head_dim"] == HEAD_DIM


def embedding(file: gguf.GGUFWriter) -> None:
    file.add_tensor("token_embd.weight", np.ones((VOCAB, WIDTH), np.float32))


def unknown_tensor(file: gguf.GGUFWriter) -> None:
    embedding(file)
    file.add_tensor("blk.0.attn_sinks.weight", np.ones(HEADS, np.float32))


def unknown_type(file: gguf.GGUFWriter) -> None:
    data = gguf.quantize(np.ones((VOCAB, WIDTH), np.float32), Type.Q5_1)
    file.add_tensor("token_embd.weight", data, raw_dtype=Type.Q5_1)


def unknown_scaling(file: gguf.GGUFWriter) -> None:
    embedding(file)
    file.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)


def one_of_several(file: gguf.GGUFWriter) -> None:
    embedding(file)
    file.add_uint16("split.count", 3)


def odd_heads(file: gguf.GGUFWriter) -> None:
    embedding(file)
    file.add_tensor("blk.0.attn_q.weight", np.ones((HEADS * 2 + 1, WIDTH), np.float32))


@pytest.mark.parametrize(
    ("arch", "fill", "words"),
    [
        ("mamba", embedding, ["'mamba'", "llama"]),
        ("llama", unknown_tensor, ["blk.0.attn_sinks.weight"]),
        ("llama", unknown_type, ["token_embd.weight", "Q5_1", "Q4_K"]),
        ("llama", unknown_scaling, ["rope.scaling.type", "longrope"]),
        ("llama", one_of_several, ["3 parts", "--merge"]),
        ("llama", odd_heads, ["blk.0.attn_q.weight", "[9, 256]"]),
        ("llama", lambda file: None, ["token_embd.weight"]),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, arch: str, fill: Callable[[gguf.GGUFWriter], None], words: list[str]
) -> None:
    file = writer(tmp_path / "m.gguf", arch)
    fill(file)
    finish(file)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(tmp_path / "m.gguf")
    assert all(word in str(refused.value) for word in ["m.gguf", *words])
    assert "\n" not in str(refused.value)


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    file = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    embedding(file)
    finish(file)
    with pytest.raises(CheckpointError, match=r"llama\.attention\.head_count"):
        open_checkpoint(tmp_path / "m.gguf")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_refused_in_one_line(tmp_path: Path, fraction: float) -> None:
    whole = tmp_path / "whole.gguf"
    if not whole.exists():
        tiny_file(whole, Type.Q8_0)
    data = whole.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: math.floor(fraction * (len(data) - 32))])
    with pytest.raises(CheckpointError, match=r"cut\.gguf.*download it again") as refused:
        open_checkpoint(cut)
    assert "\n" not in str(refused.value)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300
)
@given(at=st.integers(0, 1500), value=st.integers(0, 255))
def test_a_flipped_header_byte_is_refused_or_harmless(tmp_path: Path, at: int, value: int) -> None:
    whole = tmp_path / "whole.gguf"
    if not whole.exists():
        tiny_file(whole, Type.Q8_0)
    data = bytearray(whole.read_bytes())
    data[at] = value
    flipped = tmp_path / "flipped.gguf"
    flipped.write_bytes(data)
    try:
        with open_checkpoint(flipped) as checkpoint:
            for name in checkpoint.names:
                checkpoint.read(name, (slice(0, 1),))
    except CheckpointError as error:
        refusal = str(error)
    else:
        return
    assert "flipped.gguf" in refusal
