# SPDX-License-Identifier: MIT
"""A tiny random embedder as sentence-transformers saves one, and transformers as its oracle."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from tests.models.tiny import randomise

SIZE = 48
END = 256  # what the tokenizer puts behind the bytes of each text


def save_tiny_embedder(path: Path, **changes: Any) -> Qwen3Model:
    """Write a random float32 Qwen3 that pools its last token, and return it."""
    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=END + 4,
        hidden_size=SIZE,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=256,
        **changes,
    )
    config._attn_implementation = "eager"
    oracle = Qwen3Model(config).eval().float()
    randomise(oracle)
    oracle.save_pretrained(path)
    kinds = ("Transformer", "Pooling", "Normalize")
    places = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, place) in enumerate(zip(kinds, places, strict=True))
    ]
    modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    pooling = {f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes}
    write(path / "modules.json", modules)
    write(path / "1_Pooling" / "config.json", {"word_embedding_dimension": SIZE, **pooling})
    save_bytes(path)
    return oracle


def save_bytes(path: Path) -> None:
    """Write a tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: id for id, each in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", END)]
    )
    tokenizer.save(str(path / "tokenizer.json"))


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))


def expected(oracle: Qwen3Model, ids: list[int]) -> Tensor:
    """Return the oracle's embedding of token ids, of length 1."""
    with torch.inference_mode():
        row: Tensor = oracle(torch.tensor([ids])).last_hidden_state[0, -1]
    return row / row.norm()
