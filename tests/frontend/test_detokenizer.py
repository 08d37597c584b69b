# SPDX-License-Identifier: MIT
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.completion import CompletionText, joined
from tokenspeed_core.detokenizer import Detokenizer, StopStrings, TokenText
from tokenspeed_core.ipc.messages import FinishReason
from tokenspeed_core.sdk import Delta
from tokenspeed_core.tokenizer import Tokenizer, TokenizerError, from_gguf

any_ids = st.lists(st.integers(0, 49151), max_size=40)
# ids below 272 are special tokens and single bytes: mostly invalid UTF-8
byte_ids = st.lists(st.integers(0, 271), max_size=40)
texts = st.text(max_size=60)


def spm_vocabulary() -> dict[str, object]:
    """A SentencePiece vocabulary with byte fallback, as GGUF metadata."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    pieces += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    words = ["▁", "a", "b", "c", "▁a", "ab", "▁ab", "abc", "▁▁", "é", "bc", "▁abc"]
    pieces += [(word, 1) for word in words]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece for piece, _ in pieces],
        "tokenizer.ggml.token_type": [type for _, type in pieces],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(words))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.fixture(scope="module")
def spm() -> Tokenizer:
    return from_gguf(spm_vocabulary())


def assert_every_prefix_decodes(tokenizer: Tokenizer, table: TokenText, ids: list[int]) -> None:
    streaming = Detokenizer(table)
    shown = ""
    for length, id in enumerate(ids, start=1):
        shown += streaming.push(id)
        batch = tokenizer.decode(ids[:length])
        assert batch.startswith(shown)
        held = batch.removeprefix(shown)
        # what is held back is at most an unfinished character, or a run of byte tokens
        assert not held or "\ufffd" in held or table.strip_first_space
        fresh = Detokenizer(table)
        assert "".join([fresh.push(i) for i in ids[:length]]) + fresh.finish() == batch
    assert shown + streaming.finish() == tokenizer.decode(ids)


@settings(max_examples=150, deadline=None)
@given(ids=any_ids | byte_ids)
def test_streamed_text_is_the_batch_decoding_of_every_prefix(
    codec: TextCodec, ids: list[int]
) -> None:
    assert_every_prefix_decodes(codec.tokenizer, codec.table, ids)


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_streamed_text_is_the_text(codec: TextCodec, text: str) -> None:
    ids = codec.tokenizer.encode(text)
    assert_every_prefix_decodes(codec.tokenizer, codec.table, ids)
    if codec.tokenizer.decode(ids, skip_special=False) == text:
        streaming = Detokenizer(codec.table)
        shown = "".join(streaming.push(id) for id in ids) + streaming.finish()
        assert shown == codec.tokenizer.decode(ids)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 270) | st.integers(255, 270), max_size=30))
def test_byte_fallback_streams_like_the_batch(spm: Tokenizer, ids: list[int]) -> None:
    assert_every_prefix_decodes(spm, TokenText.of(spm), ids)


def test_an_emoji_of_four_byte_tokens_appears_at_once(codec: TextCodec) -> None:
    ids = codec.tokenizer.encode("x🧿y")
    streaming = Detokenizer(codec.table)
    pieces = [streaming.push(id) for id in ids]
    assert len(ids) > 3
    assert [piece for piece in pieces if piece] == ["x", "🧿", "y"]


def test_a_million_tokens_hold_nothing_back(codec: TextCodec) -> None:
    ids = codec.tokenizer.encode("The quick brown fox naïvely 🎉. ") * 30_000
    streaming = Detokenizer(codec.table)
    size = sum(len(streaming.push(id)) for id in ids)
    assert size + len(streaming.finish()) == len(codec.tokenizer.decode(ids))


def test_an_id_beyond_the_vocabulary_has_no_text(codec: TextCodec) -> None:
    streaming = Detokenizer(codec.table)
    assert streaming.push(codec.tokenizer.vocab_size) == streaming.push(-1) == ""


def test_an_unknown_decoder_is_refused(codec: TextCodec) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    backend = Backend(models.WordLevel({"a": 0}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(TokenizerError, match="WordPiece"):
        TokenText.of(Tokenizer(backend, None, frozenset(), None))


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """The definition: the stop that ends first; of those that end together the longest."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            longest = max(ended, key=len)
            return end - len(longest), longest
    return None


small = st.text(alphabet="ab\n é", max_size=24)


@settings(max_examples=500, deadline=None)
@given(
    text=small,
    stops=st.lists(st.text(alphabet="ab\n é", min_size=1, max_size=5), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 24)),
)
def test_stop_strings_cut_exactly_for_every_split(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    expected = first_stop(text, stops)
    finder = StopStrings(stops)
    shown = ""
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for start, end in itertools.pairwise(places):
        shown += finder.push(text[start:end])
        # never more than what stays whatever follows
        final = len(text) if expected is None else expected[0]
        assert shown == text[: len(shown)]
        assert len(shown) <= final
        if finder.matched is not None:
            break
        held = text[len(shown) : end]
        assert held == "" or any(stop.startswith(held) for stop in stops)
    if expected is None:
        assert finder.matched is None
        assert shown + finder.finish() == text
    else:
        assert (shown, finder.matched) == (text[: expected[0]], expected[1])


@settings(max_examples=200, deadline=None)
@given(
    ids=any_ids | byte_ids,
    stops=st.lists(st.text(alphabet="e \ufffdt", min_size=1, max_size=3), max_size=3),
    seed=st.integers(0, 2**32),
    reason=st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]),
)
def test_a_completion_does_not_depend_on_how_its_tokens_arrive(
    codec: TextCodec, ids: list[int], stops: list[str], seed: int, reason: FinishReason
) -> None:
    draw = random.Random(seed)

    def completed(sizes: list[int]) -> object:
        text = CompletionText(codec.table, tuple(stops), 7, logprobs=True)
        deltas, start = [], 0
        for number, size in enumerate(sizes):
            end = start + size
            is_last = number == len(sizes) - 1
            row = ids[start:end]
            finish = reason if is_last else FinishReason.NONE
            deltas.append(text.push(Delta(row, [float(-i) for i in range(start, end)], finish, 0)))
            start = end
            if deltas[-1].finish_reason is not None:
                break
        return joined(deltas)

    sizes: list[int] = []
    # the id that stops a request arrives with the finish reason; splits may fall anywhere else
    while sum(sizes) < len(ids) - 1:
        sizes.append(draw.randint(1, len(ids) - 1 - sum(sizes)))
    sizes.append(len(ids) - sum(sizes))
    whole, split = completed([len(ids)]), completed(sizes)
    assert whole == split
    if whole.stop_reason in stops:
        assert whole.stop_reason not in whole.text
    assert len(whole.logprobs) == len(whole.token_ids) <= whole.usage.completion_tokens


def test_tokens_whose_text_a_stop_string_cut_are_not_handed_out(codec: TextCodec) -> None:
    ids = codec.tokenizer.encode("one two three four")
    text = CompletionText(codec.table, ("three",), 1, logprobs=False)
    delta = text.push(Delta(ids, [], FinishReason.LENGTH, 0))
    assert delta.text == "one two "
    # " three" begins with a kept space, so it stays; "four" was never looked at
    assert codec.tokenizer.decode(delta.token_ids) == "one two three"
    assert (delta.finish_reason, delta.stop_reason, text.kept) == ("stop", "three", 3)
