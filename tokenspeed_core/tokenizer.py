# SPDX-License-Identifier: MIT
"""Text to token ids and back, from a `tokenizer.json` or from a GGUF file's vocabulary."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from .checkpoint.gguf_file import GgufFile
from .model_source import ModelSource

# token types of the GGUF specification
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
# special tokens that end a turn in some model family, looked up by name in a GGUF vocabulary
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|eom_id|>")


# Fewer and shorter texts are encoded before another core is awake.
_FEW, _SHORT_CHARS = 16, 65536


class TokenizerError(ValueError):
    """A model's tokenizer is missing, damaged or of a kind that is not built."""


@attrs.frozen(eq=False)
class Tokenizer:
    """A vocabulary with its special tokens; immutable and safe to use from several threads."""

    backend: tokenizers.Tokenizer
    bos_id: int | None
    eos_ids: frozenset[int]  # sampling one of them ends a generation
    chat_template: str | None

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text, such as end of turn."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(id for id, token in added.items() if token.special)

    def spelled(self, id: int) -> str | None:
        """Return a token as the vocabulary spells it."""
        return self.backend.id_to_token(id)

    def special_texts(self) -> dict[int, str]:
        """Return how the special tokens are written, by id."""
        added = self.backend.get_added_tokens_decoder()
        return {id: token.content for id, token in added.items() if token.special}

    def added_texts(self) -> list[str]:
        """Return how the tokens are written that are found before text is split."""
        return [token.content for token in self.backend.get_added_tokens_decoder().values()]

    def special_text(self) -> dict[str, str]:
        """Return the variables `bos_token` and `eos_token` as chat templates want them."""
        ids = {"bos_token": self.bos_id, "eos_token": min(self.eos_ids, default=None)}
        texts = {name: self.backend.id_to_token(id) for name, id in ids.items() if id is not None}
        return {name: text for name, text in texts.items() if text is not None}

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Return the ids of `text`; `add_special` puts a BOS in front where the model wants one."""
        # the batch form lets other threads run meanwhile, and computes no character offsets
        (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=add_special)
        return encoding.ids

    def encode_all(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        """Return the ids of each text, as `encode` does; many or long ones on all cores."""
        if len(texts) <= _FEW and sum(map(len, texts)) <= _SHORT_CHARS:
            return [self.encode(text, add_special=add_special) for text in texts]
        found = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special)
        return [each.ids for each in found]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of all ids at once; invalid UTF-8 becomes U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    @classmethod
    def load(cls, source: ModelSource) -> "Tokenizer":
        """Read the tokenizer of a model.

        Raises:
            TokenizerError: no tokenizer there, or one of a kind that is not built.
            CheckpointError: the GGUF file is damaged.
        """
        if source.kind == "gguf":
            return from_gguf(GgufFile.open(source.path).metadata, str(source.path))
        return from_directory(source.path)


def from_directory(path: Path) -> Tokenizer:
    """Read `tokenizer.json` and its companions from a Hugging Face directory.

    Raises:
        TokenizerError: there is no `tokenizer.json`, or a file is damaged.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        raise TokenizerError(
            f"{path} holds no tokenizer.json; save the fast tokenizer beside the weights"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{file} cannot be read: {error}") from error
    config = _read_json(path / "tokenizer_config.json")
    generation = _read_json(path / "generation_config.json")
    model = _read_json(path / "config.json")
    eos = generation.get("eos_token_id", model.get("eos_token_id"))
    eos_ids = {eos} if isinstance(eos, int) else set(eos or ())
    if (named := _token_id(backend, config.get("eos_token"))) is not None:
        eos_ids.add(named)
    bos = _token_id(backend, config.get("bos_token"))
    return Tokenizer(
        backend,
        bos_id=bos if bos is not None else model.get("bos_token_id"),
        eos_ids=frozenset(eos_ids),
        chat_template=_directory_template(path, config),
    )


def _directory_template(path: Path, config: dict[str, Any]) -> str | None:
    if (file := path / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = {each["name"]: each["template"] for each in template}.get("default")
    return template


def _token_id(backend: tokenizers.Tokenizer, token: Any) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return backend.token_to_id(text) if text else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise TokenizerError(f"{path} is not a JSON object: {error}") from error


# Splitting text before byte-pair merging, by the name GGUF gives the scheme.  The patterns are part
# of each published vocabulary: with another pattern the same merges give other ids.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _pre_tokenizer(scheme: str, where: str) -> pre_tokenizers.PreTokenizer:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if scheme == "gpt-2":
        return gpt2
    if scheme == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    if scheme in ("llama-bpe", "llama3", "llama-v3"):
        return _split(_CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _REST)
    if scheme == "qwen2":
        return _split(_CONTRACTIONS + _WORDS + r"|\p{N}" + _REST)
    raise TokenizerError(
        f"{where}: pre-tokenizer {scheme!r} is not built; built: gpt-2, smollm, llama-bpe, qwen2"
    )


def from_gguf(metadata: dict[str, Any], where: str = "GGUF metadata") -> Tokenizer:
    """Build the tokenizer that a GGUF header describes.

    Raises:
        TokenizerError: the vocabulary is missing or of a kind that is not built.
    """

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    kind, tokens, types = get("model"), get("tokens"), get("token_type")
    if tokens is None:
        raise TokenizerError(f"{where} holds no vocabulary (tokenizer.ggml.tokens)")
    types = types or [1] * len(tokens)
    if kind == "gpt2":
        scheme = get("pre", "gpt-2")
        backend = _byte_level_bpe(tokens, get("merges", []), scheme, where)
        wants_bos = scheme in ("llama-bpe", "llama3", "llama-v3")
    elif kind == "llama":
        backend = _sentencepiece(tokens, get("scores", []), types, get("add_space_prefix", True))
        wants_bos = True
    else:
        raise TokenizerError(f"{where}: tokenizer model {kind!r} is not built; built: gpt2, llama")
    backend.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, type in zip(tokens, types, strict=True)
            if type in (_CONTROL, _UNKNOWN)
        ]
    )
    backend.add_tokens(
        [
            AddedToken(t, special=False, normalized=False)
            for t, type in zip(tokens, types, strict=True)
            if type == _USER_DEFINED
        ]
    )
    bos = get("bos_token_id")
    if get("add_bos_token", wants_bos) and bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=[tokens[bos], "$A"], special_tokens=[(tokens[bos], bos)]
        )
    ends = {get("eos_token_id"), get("eot_token_id")}
    control = {
        t: i for i, (t, type) in enumerate(zip(tokens, types, strict=True)) if type == _CONTROL
    }
    ends |= {control.get(name) for name in _END_OF_TURN}
    return Tokenizer(
        backend,
        bos_id=bos,
        eos_ids=frozenset(id for id in ends if id is not None),
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def _byte_level_bpe(
    tokens: list[str], merges: list[str], scheme: str, where: str
) -> tokenizers.Tokenizer:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: id for id, token in enumerate(tokens)},
            merges=pairs,
            # these vocabularies hold whole words that no chain of merges builds
            ignore_merges=scheme in ("llama-bpe", "llama3", "llama-v3"),
        )
    )
    if scheme == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(scheme, where)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(
    tokens: list[str], scores: list[float], types: list[int], space_prefix: bool
) -> tokenizers.Tokenizer:
    """SentencePiece BPE: a merge's rank is the score of the piece that it makes."""
    ids = {token: id for id, token in enumerate(tokens)}
    ranked = []
    for token, id in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[id], ids[left], ids[right], left, right))
    ranked.sort()
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=ids,
            merges=[(left, right) for *_, left, right in ranked],
            unk_token=next(
                (t for t, type in zip(tokens, types, strict=True) if type == _UNKNOWN), None
            ),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    tail: list[decoders.Decoder] = []
    if space_prefix:
        steps.insert(0, normalizers.Prepend("▁"))
        tail.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    return backend
