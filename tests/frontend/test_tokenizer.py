# SPDX-License-Identifier: MIT
"""Token ids against the library that everyone else uses, which is never imported at run time."""

import asyncio
import copy
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from tokenizers.pre_tokenizers import Digits
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.frontend.test_detokenizer import spm_vocabulary
from tokenspeed_core.async_llm import PromptError, TextCodec
from tokenspeed_core.checkpoint import CheckpointError
from tokenspeed_core.model_source import ModelSource, resolve
from tokenspeed_core.tokenizer import Tokenizer, TokenizerError, from_gguf

SAMPLES = [
    "",
    " ",
    "Hello, world!",
    "  leading and trailing  ",
    "def f(x):\n    return x ** 2  # squared\n\n\n",
    "It's what they'd've said: don't, I'll, we're.",
    "Ünïcödé, 中文字符, عربى, हिन्दी, 日本語テキスト",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u200b zero width",
    "\t\ttabs\r\n\r\nand returns\r",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><repo_name>x",
    "a" * 3000,
    "snake_case camelCase 0xDEADBEEF !!! ??? ...",
    "\x00\x01\x7f control",
]


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    """transformers' reading of the same GGUF."""
    path = resolve("smollm2").path
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="module")
def oracle(plain: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same with the digit splitting that it leaves out.

    It builds every "gpt2" vocabulary with GPT-2's own splitting; this model was trained with each
    digit split off first, as the pre-tokenizer name "smollm" says.
    """
    tokenizer = copy.deepcopy(plain)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [Digits(individual_digits=True), backend.pre_tokenizer]
    )
    return tokenizer


@pytest.mark.parametrize("text", SAMPLES)
def test_ids_equal_the_oracle(codec: TextCodec, oracle: PreTrainedTokenizerFast, text: str) -> None:
    ids = codec.tokenizer.encode(text)
    assert ids == oracle(text).input_ids
    assert codec.tokenizer.decode(ids, skip_special=False) == oracle.decode(ids)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=80) | st.text(alphabet="ab 1\n\t'é", max_size=80))
def test_ids_equal_the_oracle_on_any_text(
    codec: TextCodec, oracle: PreTrainedTokenizerFast, text: str
) -> None:
    assert codec.tokenizer.encode(text) == oracle(text).input_ids


def test_the_oracle_differs_only_by_digit_splitting(
    codec: TextCodec, plain: PreTrainedTokenizerFast
) -> None:
    assert codec.tokenizer.encode("a  1") != plain("a  1").input_ids
    for text in SAMPLES:
        if not any(char.isdigit() for char in text):
            assert codec.tokenizer.encode(text) == plain(text).input_ids


def test_special_tokens_of_smollm2(codec: TextCodec) -> None:
    tokenizer = codec.tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (1, {2}, 49152)
    assert tokenizer.special_ids == frozenset(range(17))
    assert tokenizer.special_text() == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert tokenizer.encode("x") == tokenizer.encode("x", add_special=False)  # no BOS wanted
    assert tokenizer.decode([1, 9690, 2]) == tokenizer.decode([9690])


def test_loading_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from tokenspeed_core.async_llm import TextCodec; TextCodec.load('smollm2');"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_saved_directory_gives_the_same_ids(codec: TextCodec, tmp_path: Path) -> None:
    codec.tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = Tokenizer.load(ModelSource("hf", tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, {0, 2})
    assert tokenizer.chat_template == "{{ messages }}"
    for text in SAMPLES:
        assert tokenizer.encode(text) == codec.tokenizer.encode(text)


def byte_vocabulary(scheme: str, **more: object) -> dict[str, object]:
    """A byte-level vocabulary without merges: each pre-token shows in how merges stay inside it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("a", "a"), ("1", "1"), ("Ġ", "a"), ("Ġ", "1"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("a", "'")]
    tokens = ["<bos>", "<eos>", *alphabet, *(left + right for left, right in pairs)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": scheme,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(tokens) - 2)],
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in pairs],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        **more,
    }


@pytest.mark.parametrize(
    ("scheme", "text", "pieces"),
    [
        ("gpt-2", " 1111", ["Ġ", "11", "11"]),
        ("gpt-2", " 1", ["Ġ1"]),
        ("smollm", " 1111", ["Ġ", "1", "1", "1", "1"]),
        ("llama-bpe", " 1111", ["<bos>", "Ġ", "11", "1", "1"]),
        ("qwen2", " 1111", ["Ġ", "1", "1", "1", "1"]),
        ("gpt-2", "aa'a", ["aa", "'", "a"]),
        ("qwen2", "a\n\n a", ["a", "ĊĊ", "Ġa"]),
        ("gpt-2", "a\n\n a", ["a", "ĊĊ", "Ġa"]),
        ("qwen2", "e\u0301", ["Ã", "©"]),  # composed first
        ("gpt-2", "e\u0301", ["e", "Ì", "ģ"]),
    ],
)
def test_pre_tokenizers_split_as_named(scheme: str, text: str, pieces: list[str]) -> None:
    backend = from_gguf(byte_vocabulary(scheme)).backend
    assert backend.encode(text).tokens == pieces


@pytest.mark.parametrize("wants", [True, False])
def test_the_header_says_whether_a_prompt_starts_with_bos(wants: bool) -> None:
    for scheme in ("gpt-2", "llama-bpe"):
        metadata = byte_vocabulary(scheme, **{"tokenizer.ggml.add_bos_token": wants})
        ids = from_gguf(metadata).encode("a")
        assert (ids[0] == 0) == wants
        assert from_gguf(metadata).encode("a", add_special=False)[0] != 0


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="abc é🎉\n", max_size=20))
def test_sentencepiece_round_trips_and_ranks_merges_by_score(text: str) -> None:
    tokenizer = from_gguf(spm_vocabulary())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_pieces() -> None:
    tokenizer = from_gguf(spm_vocabulary())
    assert tokenizer.backend.encode("abc é").tokens == ["<s>", "▁abc", "▁", "é"]
    assert tokenizer.backend.encode("ü").tokens == ["<s>", "▁", "<0xC3>", "<0xBC>"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "'rwkv' is not built"),
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken' is not built"),
        ({"tokenizer.ggml.tokens": None}, "no vocabulary"),
    ],
)
def test_what_is_not_built_is_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        from_gguf(byte_vocabulary("gpt-2", **change))


def test_damaged_files_are_one_clear_error(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    data = resolve("smollm2").path.read_bytes()[:100_000]
    for size in random.Random(0).sample(range(4, len(data)), 20):
        cut.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            Tokenizer.load(ModelSource("gguf", cut))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.load(ModelSource("hf", tmp_path))
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        Tokenizer.load(ModelSource("hf", tmp_path / "missing"))


async def test_a_long_prompt_is_tokenised_while_others_go_on(codec: TextCodec) -> None:
    ticks = 0

    async def others() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    running = asyncio.create_task(others())
    text = "the quick brown fox jumps " * 20_000
    for prompt in (codec.prompt(text), codec.chat_prompt([{"role": "user", "content": text}])):
        before = ticks
        assert len(await prompt) > 100_000
        assert ticks - before > 10
    running.cancel()


async def test_text_that_cannot_fit_costs_nothing(codec: TextCodec) -> None:
    small = codec.within(100)
    fits = " " * 100
    assert len(await small.prompt(fits)) < 100
    too_long = "x" * (small.max_chars + 1)
    with pytest.raises(PromptError, match="shorten") as caught:
        await small.prompt(too_long)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(PromptError):
        await small.chat_prompt([{"role": "user", "content": too_long}])
    longest = max((piece for piece in codec.table.pieces if piece), key=len)
    assert len(await small.prompt(longest.decode() * 100)) <= 200
