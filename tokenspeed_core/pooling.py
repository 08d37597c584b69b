# SPDX-License-Identifier: MIT
"""What a checkpoint says of the embeddings that it is for, in the layout of sentence-transformers.

`modules.json` lists what a text goes through: a transformer, a pooling of its rows into one, and
perhaps a normalisation.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import msgspec

_MODULES = "modules.json"
_SETTINGS = "config_sentence_transformers.json"
_LENGTH = "sentence_bert_config.json"
_MODE = "pooling_mode"
_LAST = "lasttoken"


class _Module(msgspec.Struct):
    type: str
    path: str = ""

    @property
    def kind(self) -> str:
        return self.type.rpartition(".")[2]


class _Settings(msgspec.Struct):
    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None


class _Length(msgspec.Struct):
    max_seq_length: int | None = None
    do_lower_case: bool = False


class _Config(msgspec.Struct):
    hidden_size: int
    is_matryoshka: bool | None = None
    matryoshka_dimensions: list[int] | None = None


Read = TypeVar("Read")


class PoolingError(ValueError):
    """A checkpoint wants its embeddings made in a way that is not built."""


class EmbeddingError(ValueError):
    """An embedding cannot be had; `field` names what was asked wrongly."""

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


@attrs.frozen
class Pooling:
    """How embeddings are made of a model's last hidden row."""

    size: int  # values of an embedding
    normalises: bool  # to length 1
    prompt: str = ""  # before each text
    max_tokens: int = 0  # of an input; 0: as many as the model takes
    is_matryoshka: bool = False  # the first values are an embedding too ...
    sizes: tuple[int, ...] = ()  # ... if they are so many; empty: any number

    @classmethod
    def of(cls, path: Path) -> "Pooling | None":
        """Read what is in a model's directory; None: it is no embedder, or a file.

        Raises:
            PoolingError: the embeddings are made in another way than of the last token's row.
        """
        if not (path / _MODULES).is_file():
            return None
        modules = _read(path / _MODULES, list[_Module])
        kinds = [each.kind for each in modules]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise PoolingError(
                f"{path / _MODULES} lists {', '.join(kinds) or 'nothing'}; embeddings are served "
                f"of a Transformer, a Pooling and perhaps a Normalize"
            )
        place = modules[1].path
        if Path(place).name != place:  # it could lead out of the model's own
            raise PoolingError(f"{path / _MODULES} has a module in {place!r}, no plain name")
        pooling = _read(path / place / "config.json", dict[str, Any])
        _check_last(pooling, path)
        settings = _read(path / _SETTINGS, _Settings, _Settings())
        length = _read(path / _LENGTH, _Length, _Length())
        if length.do_lower_case:
            raise PoolingError(f"{path / _LENGTH} has do_lower_case, which is not built")
        config = _read(path / "config.json", _Config)
        sizes = tuple(config.matryoshka_dimensions or ())
        return cls(
            size=config.hidden_size,
            normalises=len(kinds) == 3,
            prompt=(settings.prompts or {}).get(settings.default_prompt_name or "", ""),
            max_tokens=length.max_seq_length or 0,
            is_matryoshka=bool(config.is_matryoshka or sizes),
            sizes=sizes,
        )

    def check(self, dimensions: int | None) -> None:
        """Raise EmbeddingError if embeddings of so many values, None for all, cannot be had."""
        if dimensions is None or dimensions == self.size:
            return
        if not self.is_matryoshka:
            raise EmbeddingError(
                "dimensions",
                "unsupported_parameter",
                f"dimensions is {dimensions}, and this model's embeddings have {self.size} values "
                f"which mean nothing by parts; leave the field out (an operator who knows that "
                f"the model was trained for it gives --matryoshka)",
            )
        fits = dimensions in self.sizes if self.sizes else 1 <= dimensions < self.size
        if not fits:
            sizes = ", ".join(map(str, self.sizes)) or f"1 to {self.size}"
            raise EmbeddingError(
                "dimensions", "invalid_parameter", f"dimensions is {dimensions}; give {sizes}"
            )


def _check_last(pooling: Mapping[str, Any], path: Path) -> None:
    """Newer files name the mode, older ones have a flag for each."""
    flags = [key for key, value in pooling.items() if key.startswith(f"{_MODE}_") and value]
    modes = [pooling[_MODE]] if _MODE in pooling else [k.removeprefix(f"{_MODE}_") for k in flags]
    if modes != [_LAST]:
        raise PoolingError(
            f"{path} pools by {', '.join(map(str, modes)) or 'nothing'}; what is served is the "
            f"row of the last token ({_LAST}), as rows of cached tokens are not computed again"
        )


def _read(file: Path, kind: type[Read], default: Read | None = None) -> Read:
    if default is not None and not file.is_file():
        return default
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise PoolingError(f"{file} cannot be read: {error}") from error
