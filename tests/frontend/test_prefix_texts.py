# SPDX-License-Identifier: MIT
"""Tokenising what is new gives the ids of tokenising the whole, at every boundary."""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from tokenspeed_core import prefix_texts
from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.prefix_texts import PrefixTexts
from tokenspeed_core.tokenizer import Tokenizer

MARKS = ["<|im_start|>", "<|im_end|>"]


@cache
def smollm2() -> Tokenizer:
    return TextCodec.load("smollm2").tokenizer


def changed(change: Callable[[tokenizers.Tokenizer], object]) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(smollm2().backend.to_str())
    change(backend)
    return Tokenizer(backend, None, frozenset(), None)


@cache
def longer_special() -> Tokenizer:
    """A longer special token begins with a marker, and a plain added one contains another."""
    return changed(lambda t: t.add_special_tokens([AddedToken("<|im_end|>x", normalized=False)]))


@cache
def stripping() -> Tokenizer:
    """A special token that swallows the space behind it."""
    special = AddedToken("<|im_end|>", rstrip=True, normalized=False, special=True)
    return changed(lambda t: t.add_special_tokens([special]))


@cache
def overlapping() -> Tokenizer:
    """A special token that ends as a marker begins, and is found before it."""
    return changed(lambda t: t.add_special_tokens([AddedToken("b<|im_", normalized=False)]))


@cache
def lowercasing() -> Tokenizer:
    """Markers that are found in other spellings, too."""

    def change(backend: tokenizers.Tokenizer) -> None:
        backend.normalizer = normalizers.Lowercase()
        backend.add_special_tokens([AddedToken(f"<|{each}|>", normalized=True) for each in "ab"])

    return changed(change)


@cache
def first_only() -> Tokenizer:
    """A vocabulary that treats the head of the input in its own way."""
    pieces = ["<unk>", "▁", "▁x", "x", "a", "b", "1", "\n", "▁a"]
    backend = tokenizers.Tokenizer(models.Unigram([(each, -1.0) for each in pieces], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken(each, normalized=False) for each in MARKS])
    return Tokenizer(backend, None, frozenset(), None)


@cache
def prepending() -> Tokenizer:
    """SentencePiece of old: each piece of text gets a space in front."""
    pieces = ["<unk>", "▁", "x", "a", "b", "1", "\n", "▁a", "▁x"]
    vocab = {each: at for at, each in enumerate(pieces)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=[("▁", "a"), ("▁", "x")], unk_token="<unk>")
    )
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(steps)
    backend.add_special_tokens([AddedToken(each, normalized=False) for each in MARKS])
    return Tokenizer(backend, None, frozenset(), None)


VOCABULARIES = [
    *(smollm2, longer_special, stripping, overlapping, lowercasing),
    *(first_only, prepending),
]
PIECES = [*MARKS, "<|im_", "end|>", "|>", "<", "x", " x", "  ", "\n", "\n\n", "a b", "1 2", "é"]
PIECES += ["e\u0301", "世界", "🎉", "\ud7ff", "'s", "user", "assistant\n", "-->", "<|endoftext|>"]
PIECES += ["<|a|>", "<|A|>"]
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=lambda each: each.__name__)
@settings(max_examples=120, deadline=None)
@given(first=texts, turns=st.lists(st.tuples(st.floats(0, 1), texts), max_size=6))
def test_every_turn_has_the_ids_of_the_whole(
    vocabulary: Callable[[], Tokenizer], first: str, turns: list[tuple[float, str]]
) -> None:
    tokenizer = vocabulary()
    before, prefix_texts.MIN_CHARS = prefix_texts.MIN_CHARS, 0
    try:
        prefixes = PrefixTexts(tokenizer, [*MARKS, "<|a|>"], max_bytes=20_000)
        text = first
        for keep, new in [(1.0, ""), *turns]:
            text = text[: round(keep * len(text))] + new  # goes on, or turns off at any character
            for salt in ("", "other"):
                ids = prefixes.encode(text, salt).tolist()
                assert ids == tokenizer.encode(text, add_special=False)
        assert prefixes.num_bytes <= 20_000
    finally:
        prefix_texts.MIN_CHARS = before


def test_threads_share_a_tree_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_texts, "MIN_CHARS", 0)
    tokenizer = smollm2()
    prefixes = PrefixTexts(tokenizer, MARKS, max_bytes=20_000)
    stems = [f"<|im_start|>{name} {'x y ' * 40}<|im_end|>" for name in "abc"]

    def converse(seed: int) -> int:
        draw, turns = random.Random(seed), 0
        for _ in range(30):
            text = draw.choice(stems)
            for turn in range(draw.randrange(1, 6)):
                text += f"<|im_start|>turn {draw.randrange(2)} {turn}<|im_end|>\n"
                salt = draw.choice(("", "other"))
                ids = prefixes.encode(text, salt).tolist()
                assert ids == tokenizer.encode(text, add_special=False)
                turns += 1
        return turns

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(converse, range(4))) > 200
    pieces = list(prefixes._roots.values())
    for piece in pieces:  # which grows
        pieces += piece.children.values()
        assert all(child.parent is piece for child in piece.children.values())
        assert (piece.latest in piece.children.values()) == bool(piece.children)
    assert prefixes.num_bytes == sum(each.num_bytes for each in pieces) <= 20_000
    assert set(prefixes._tips) == {each for each in pieces if not each.children}


def test_what_was_used_longest_ago_goes_first() -> None:
    prefixes = PrefixTexts(smollm2(), MARKS, max_bytes=100_000)
    system = "<|im_start|>system\n" + "Be brief. " * 800 + "<|im_end|>\n"
    texts = [f"{system}<|im_start|>user\n{each} {'x ' * 4000}<|im_end|>\n" for each in range(5)]
    known = [False] * 5
    for each in (0, 1, 2, 0, 3, 4, 0):
        prefixes.encode(texts[each])
    for each, text in enumerate(texts):
        known[each] = len(prefixes.begin(text).rest) < 10
    assert known == [True, False, False, True, True]


def test_only_markers_that_end_a_piece_of_text_are_used() -> None:
    used = {each.__name__: PrefixTexts(each(), MARKS).markers for each in VOCABULARIES}
    assert used == {
        "smollm2": MARKS,
        "longer_special": ["<|im_start|>"],
        "stripping": ["<|im_start|>"],
        "overlapping": MARKS,
        "lowercasing": MARKS,
        "first_only": [],
        "prepending": MARKS,
    }


class Counting(Tokenizer):
    """Counts the characters that are tokenised."""

    chars = 0

    def encode_all(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        type(self).chars += sum(map(len, texts))
        return super().encode_all(texts, add_special=add_special)


def test_a_turn_costs_what_is_new_and_memory_is_bounded() -> None:
    base = smollm2()
    tokenizer = Counting(base.backend, base.bos_id, base.eos_ids, None)
    prefixes = PrefixTexts(tokenizer, MARKS, max_bytes=400_000)
    system = "<|im_start|>system\n" + "Be brief. " * 2000 + "<|im_end|>\n"
    cold = system
    for turn in range(20):
        cold += f"<|im_start|>user\nTurn {turn}. {'word ' * 100}<|im_end|>\n<|im_start|>assistant\n"
        Counting.chars = 0
        ids = prefixes.encode(cold)
        # the piece behind the last marker that both turns have, and the new one
        assert turn == 0 or Counting.chars < 1300, Counting.chars
        cold += "Yes.<|im_end|>\n"
    assert ids.tolist() == base.encode(cold.removesuffix("Yes.<|im_end|>\n"), add_special=False)
    # another conversation with the same system prompt pays for its own part only
    Counting.chars = 0
    prefixes.encode(system + "<|im_start|>user\nHi<|im_end|>\n")
    assert Counting.chars < 100
    Counting.chars = 0
    prefixes.encode(system + "<|im_start|>user\nHi<|im_end|>\n", salt="other")
    assert Counting.chars > len(system)
    for number in range(30):
        prefixes.encode(f"<|im_start|>system\n{number}" + "x " * 5000 + "<|im_end|>\n")
        assert prefixes.num_bytes <= 400_000
