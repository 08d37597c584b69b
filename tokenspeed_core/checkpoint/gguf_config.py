# SPDX-License-Identifier: MIT
"""GGUF metadata in the terms of a Hugging Face config.json."""

import math

import numpy as np
import numpy.typing as npt

from .checkpoint import CheckpointError
from .gguf_architecture import GgufArchitecture
from .gguf_file import GgufFile

ROPE_FACTORS = "rope_freqs.weight"

# GGUF keeps only the frequency divisors of a llama3 rope; these are what every release used.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def gguf_config(file: GgufFile, architecture: GgufArchitecture) -> dict[str, object]:
    """Return what config.json of the original model says, as far as a forward pass needs it.

    Raises:
        CheckpointError: a required key is missing or of the wrong type, or differs between layers,
            or a rope scaling is not known.
    """
    values = _Values(file, architecture.key)
    heads = values.integer("attention.head_count")
    hidden_size = values.integer("embedding_length")
    config: dict[str, object] = {
        "architectures": [architecture.hugging_face_class],
        "model_type": architecture.model_type,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": values.integer("feed_forward_length"),
        "num_hidden_layers": values.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": values.integer("attention.head_count_kv", heads),
        "head_dim": _head_dim(values, architecture, hidden_size // heads),
        "max_position_embeddings": values.integer("context_length"),
        "rms_norm_eps": values.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope_parameters(values),
        "vocab_size": _vocab_size(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
    }
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = file.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if token is not None:
            config[f"{ours}_token_id"] = token
    return config


class _Values:
    """The keys of one architecture, checked."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file = file
        self.architecture = architecture

    def get(self, key: str) -> object:
        value = self.file.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            return value[0]  # one value per layer, all equal
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or value <= 0:
            raise self.unusable(key, value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, float) or not math.isfinite(value):
            raise self.unusable(key, value)
        # The file stores float32; the shortest decimal that gives it is what config.json said.
        return float(str(np.float32(value)))

    def unusable(self, key: str, value: object) -> CheckpointError:
        return CheckpointError(
            f"{self.file.path} has {self.architecture}.{key} = {value!r}, which is missing or not "
            f"supported; convert the model again or use its safetensors"
        )


def _head_dim(values: _Values, architecture: GgufArchitecture, quotient: int) -> int:
    width = values.integer("rope.dimension_count", quotient)
    head_dim = values.integer(
        "attention.key_length", width if architecture.rotates_pairs else quotient
    )
    if width != head_dim:
        raise values.unusable("rope.dimension_count", width)
    return head_dim


def _vocab_size(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(
            f"{file.path} has no tensor token_embd.weight; it holds no whole model: download the "
            f"model's own GGUF file"
        )
    return embedding.shape[0]


def _rope_parameters(values: _Values) -> dict[str, object]:
    rope: dict[str, object] = {
        "rope_type": "default",
        "rope_theta": values.number("rope.freq_base", 10000.0),
    }
    kind = values.get("rope.scaling.type")
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": values.number("rope.scaling.factor")}
    elif kind == "yarn":
        rope |= {
            "rope_type": "yarn",
            "factor": values.number("rope.scaling.factor"),
            "original_max_position_embeddings": values.integer(
                "rope.scaling.original_context_length"
            ),
        }
        for key in ("beta_fast", "beta_slow"):
            if values.get(f"rope.scaling.yarn_{key}") is not None:
                rope[key] = values.number(f"rope.scaling.yarn_{key}")
    elif kind not in (None, "none"):
        raise values.unusable("rope.scaling.type", kind)
    attention_factor = values.get("rope.scaling.attn_factor")
    if attention_factor not in (None, 1.0):
        raise values.unusable("rope.scaling.attn_factor", attention_factor)
    if ROPE_FACTORS in values.file.tensors:
        if rope["rope_type"] != "default":
            raise values.unusable("rope.scaling.type", kind)
        rope |= _factored_rope(values)
    return rope


def _factored_rope(values: _Values) -> dict[str, object]:
    """Name the rope whose inverse frequencies are the default ones divided by `rope_freqs`."""
    tensor = values.file.tensors[ROPE_FACTORS]
    if tensor.type.name != "F32" or len(tensor.shape) != 1:
        raise values.unusable(ROPE_FACTORS, f"{tensor.type.name} {list(tensor.shape)}")
    factors = values.file.rows(tensor).view(np.float32)
    if np.all(factors == 1):
        return {}
    theta = values.number("rope.freq_base", 10000.0)
    factor = float(factors.max())
    if np.allclose(factors, _llama3_factors(theta, factor, factors.size), rtol=1e-5):
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    # Any other divisors are a longrope with one regime and no change of the cos and sin scale.
    divisors = [float(str(value)) for value in factors]
    return {
        "rope_type": "longrope",
        "factor": 1.0,
        "attention_factor": 1.0,
        "short_factor": divisors,
        "long_factor": divisors,
        "original_max_position_embeddings": values.integer("context_length"),
    }


def _llama3_factors(theta: float, factor: float, count: int) -> npt.NDArray[np.float64]:
    """Return inv / inv' of the llama3 rope (Llama 3.1 model card), shape (count,)."""
    wavelength = 2 * math.pi * theta ** (np.arange(count) / count)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    turns = _LLAMA3["original_max_position_embeddings"] / wavelength
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / factor + smooth))
