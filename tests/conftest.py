# SPDX-License-Identifier: MIT
"""Models that many tests share."""

import os
from pathlib import Path

# As the launcher does for workers; libgomp reads it when torch loads it.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# Beside as many other workers as there are cores each has one.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) >= (os.cpu_count() or 1):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a GPU its kernels run in Triton's interpreter; Triton, which torch imports, reads it.
if not any(Path(each).exists() for each in ("/dev/nvidiactl", "/dev/kfd")):
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenspeed_core.model_source import resolve


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model: SmolLM2-135M-Instruct as a GGUF file."""
    return resolve("smollm2").path


def save_tiny_llama(path: Path, **overrides: object) -> Path:
    """Write a random float32 Llama whose logits are of order one, and return its directory."""
    torch.manual_seed(20)
    settings: dict[str, object] = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **overrides})).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter.normal_(1 if "norm" in name else 0, 0.2)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny random Llama: 8 query heads, 4 kv heads, 512 positions."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))
