# SPDX-License-Identifier: MIT
"""How one request is sampled and when it ends."""

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from .grammar.grammar import Grammar

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_IDS = 64
MAX_BIASES = 1024
MAX_BAD_WORDS = 128
MAX_TOP_LOGPROBS = 20
MAX_SCORED_PROMPT = 4096  # tokens of a prompt whose log-probabilities are told
_MAX_I32 = 2**31 - 1


class SamplingError(ValueError):
    """A sampling parameter has a value that cannot be served; `parameter` names it."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter} {message}")
        self.parameter = parameter


def _number(low: float, high: float) -> Any:
    def check(_: Any, field: "attrs.Attribute[Any]", value: Any) -> None:
        bad_type = isinstance(value, bool) or not isinstance(value, int | float)
        if bad_type or not math.isfinite(value) or not low <= value <= high:
            raise SamplingError(field.name, f"is {value!r}; give a number from {low:g} to {high:g}")

    return check


def _integer(low: int, high: int) -> Any:
    def check(_: Any, field: "attrs.Attribute[Any]", value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise SamplingError(field.name, f"is {value!r}; give an integer from {low} to {high}")

    return check


def _flag(_: Any, field: "attrs.Attribute[Any]", value: Any) -> None:
    if not isinstance(value, bool):
        raise SamplingError(field.name, f"is {value!r}; give true or false")


def _stops(_: Any, field: "attrs.Attribute[Any]", value: Any) -> None:
    if len(value) > MAX_STOP_STRINGS:
        raise SamplingError(field.name, f"has {len(value)} strings; at most {MAX_STOP_STRINGS}")
    for stop in value:
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_CHARS:
            shown = f"{len(stop)} characters" if isinstance(stop, str) else repr(stop)
            raise SamplingError(
                field.name, f"holds {shown}; each is a string of 1 to {MAX_STOP_CHARS} characters"
            )


def _stop_ids(_: Any, field: "attrs.Attribute[Any]", value: Any) -> None:
    if len(value) > MAX_STOP_IDS:
        raise SamplingError(field.name, f"has {len(value)} ids; at most {MAX_STOP_IDS}")
    for id in value:
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id <= _MAX_I32:
            raise SamplingError(field.name, f"holds {id!r}; give token ids")


def _biases(_: Any, field: "attrs.Attribute[Any]", value: Any) -> None:
    if len(value) > MAX_BIASES:
        raise SamplingError(field.name, f"has {len(value)} tokens; at most {MAX_BIASES}")
    for id, bias in value:
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id <= _MAX_I32:
            raise SamplingError(field.name, f"holds {id!r}; give token ids")
        _number(-100, 100)(None, field, bias)


def _bad_words(_: Any, field: "attrs.Attribute[Any]", value: Any) -> None:
    if len(value) > MAX_BAD_WORDS:
        raise SamplingError(field.name, f"has {len(value)} words; at most {MAX_BAD_WORDS}")
    for word in value:
        if not isinstance(word, str) or not 1 <= len(word.strip()) <= len(word) <= MAX_STOP_CHARS:
            shown = f"{len(word)} characters" if isinstance(word, str) else repr(word)
            raise SamplingError(
                field.name, f"holds {shown}; each is a text of 1 to {MAX_STOP_CHARS} characters"
            )


def _pairs(value: Any) -> tuple[tuple[Any, Any], ...]:
    """Return what JSON spells {"5": 1} as ((5, 1),)."""
    pairs = value.items() if isinstance(value, Mapping) else value
    return tuple((int(id) if _is_decimal(id) else id, bias) for id, bias in pairs)


def _is_decimal(id: Any) -> bool:
    return isinstance(id, str) and id.isascii() and id.isdigit() and len(id) < 12


def _strings(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else _sequence(value)


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


@attrs.frozen(kw_only=True)
class SamplingParams:
    """How to sample and when to stop; every value is checked when the object is made.

    Raises:
        SamplingError: a value has the wrong type or is out of range.
    """

    temperature: float = attrs.field(default=1.0, validator=_number(0, 2))  # 0 is greedy
    top_k: int = attrs.field(default=0, validator=_integer(0, _MAX_I32))  # 0 keeps all
    top_p: float = attrs.field(default=1.0, validator=_number(0, 1))
    max_tokens: int | None = attrs.field(  # None: the rest of the context
        default=None, validator=attrs.validators.optional(_integer(1, _MAX_I32))
    )
    seed: int | None = attrs.field(  # None: a new random seed for each request
        default=None, validator=attrs.validators.optional(_integer(-(2**63), 2**64 - 1))
    )
    stop: tuple[str, ...] = attrs.field(default=(), converter=_strings, validator=_stops)
    stop_token_ids: tuple[int, ...] = attrs.field(
        default=(), converter=_sequence, validator=_stop_ids
    )
    min_p: float = attrs.field(default=0.0, validator=_number(0, 1))
    presence_penalty: float = attrs.field(default=0.0, validator=_number(-2, 2))
    frequency_penalty: float = attrs.field(default=0.0, validator=_number(-2, 2))
    repetition_penalty: float = attrs.field(default=1.0, validator=_number(0.01, 100))
    min_tokens: int = attrs.field(default=0, validator=_integer(0, _MAX_I32))
    logit_bias: tuple[tuple[int, float], ...] = attrs.field(
        default=(), converter=_pairs, validator=_biases
    )
    bad_words: tuple[str, ...] = attrs.field(default=(), converter=_strings, validator=_bad_words)
    ignore_eos: bool = attrs.field(default=False, validator=_flag)
    logprobs: bool = attrs.field(default=False, validator=_flag)  # of each sampled token
    top_logprobs: int = attrs.field(default=0, validator=_integer(0, MAX_TOP_LOGPROBS))  # beside it
    prompt_logprobs: int | None = attrs.field(  # of the prompt's tokens; so many beside each
        default=None, validator=attrs.validators.optional(_integer(0, MAX_TOP_LOGPROBS))
    )
    grammar: Grammar | None = None  # the form of the answer

    def __attrs_post_init__(self) -> None:
        if self.top_p == 0:
            raise SamplingError("top_p", "is 0; give a number above 0, or temperature 0 for greedy")

    def drawn_seed(self) -> int:
        """Return the seed as an unsigned 64-bit number, drawing one if none was given."""
        return secrets.randbits(64) if self.seed is None else self.seed % 2**64

    def choice(self, number: int) -> "SamplingParams":
        """Return the parameters of one of several answers: a given seed grows with `number`."""
        if number == 0 or self.seed is None:
            return self
        return attrs.evolve(self, seed=(self.seed + number) % 2**64)
