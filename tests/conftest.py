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
from tokenspeed_core.tokenizer import Tokenizer

# The files that take longest: they go first, so that no worker ends with one while others are idle.
LONGEST = (
    "kernels/test_triton_compiles.py",
    "frontend/test_mutated_requests.py",
    "launch/test_engine.py",
    "engine/test_parity.py",
    "frontend/test_end_to_end.py",
    "test_examples.py",
    "frontend/test_structured_output.py",
    "frontend/test_forced_calls.py",
    "engine/test_layouts.py",
    "kernels/test_triton.py",
    "launch/test_chaos.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort items by the places of their files among the longest; else the order stays."""
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


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


@pytest.fixture(scope="session")
def thin_smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random model of thin layers, and SmolLM2's vocabulary and template.

    For tests of what stands around a model: a token takes a fiftieth of SmolLM2's time.
    """
    spoken = Tokenizer.load(resolve("smollm2"))
    (eos,) = spoken.eos_ids
    path = save_tiny_llama(
        tmp_path_factory.mktemp("thin-smollm2"),
        vocab_size=spoken.vocab_size,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        eos_token_id=eos,
    )
    spoken.backend.save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(spoken.chat_template or "")
    return path
