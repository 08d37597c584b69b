# SPDX-License-Identifier: MIT
"""What an answer must look like, as a tree of formats that every backend reads."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

MAX_GRAMMAR_BYTES = 1 << 20
MAX_CHOICES = 4096
# Models that have nothing to say fill the room between JSON's tokens.
_MAX_SPACE = 8

Format = Mapping[str, Any]


class GrammarError(ValueError):
    """A grammar that cannot be served; `field` names the request field that holds it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.reason = message


class GrammarBusyError(RuntimeError):
    """Too many grammars wait to be compiled; try again later."""


@attrs.frozen
class Grammar:
    """A form that an answer must have: a tree of formats as canonical JSON.

    The tree is the format of a structural tag (see xgrammar's documentation of these): constants,
    JSON schemas, regular expressions and EBNF grammars, put together by sequences, alternatives and
    tags.  `field` is the request field that asked for it.

    Raises:
        GrammarError: it is longer than MAX_GRAMMAR_BYTES, or is no JSON.
    """

    tree: str
    field: str = "grammar"

    def __attrs_post_init__(self) -> None:
        if len(self.tree) > MAX_GRAMMAR_BYTES:
            raise GrammarError(
                self.field, f"has {len(self.tree)} bytes; at most {MAX_GRAMMAR_BYTES} are allowed"
            )

    @classmethod
    def of(cls, form: Format, field: str = "grammar") -> "Grammar":
        """Return the grammar of a tree of formats."""
        try:
            text = json.dumps(form, sort_keys=False, separators=(",", ":"), allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise GrammarError(field, f"is no JSON: {error}") from None
        return cls(text, field)

    @property
    def form(self) -> dict[str, Any]:
        """The tree."""
        form: dict[str, Any] = json.loads(self.tree)
        return form

    @property
    def digest(self) -> str:
        """A name that no other grammar has."""
        return hashlib.blake2b(self.tree.encode(), digest_size=16).hexdigest()


def json_object() -> Format:
    """Return the form of any JSON object."""
    return json_schema({"type": "object"})


def json_schema(schema: Mapping[str, Any] | bool) -> Format:
    """Return the form of JSON that a schema describes."""
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": _MAX_SPACE}


def regex(pattern: str) -> Format:
    """Return the form of texts that match as a whole."""
    return {"type": "regex", "pattern": pattern}


def ebnf(text: str) -> Format:
    """Return the form of texts that the rule `root` of an EBNF grammar derives."""
    return {"type": "grammar", "grammar": text}


def constant(text: str) -> Format:
    """Return the form of one text."""
    return {"type": "const_string", "value": text}


def choice(texts: Sequence[str]) -> Format:
    """Return the form of one of several texts."""
    return either([constant(text) for text in texts])


def either(forms: Sequence[Format]) -> Format:
    """Return the form of what has one of several forms."""
    return forms[0] if len(forms) == 1 else {"type": "or", "elements": list(forms)}


def sequence(*forms: Format) -> Format:
    """Return the form of texts one after the other."""
    return forms[0] if len(forms) == 1 else {"type": "sequence", "elements": list(forms)}


def text(*, without: Sequence[str] = (), max_tokens: int | None = None) -> Format:
    """Return the form of any text that does not hold one of some texts."""
    form: dict[str, Any] = {"type": "any_text", "excludes": list(without)}
    return form if max_tokens is None else {**form, "max_tokens": max_tokens}
