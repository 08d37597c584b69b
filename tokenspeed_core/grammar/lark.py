# SPDX-License-Identifier: MIT
"""A tree of formats as the Lark grammar that llguidance reads."""

import json
import re
from collections.abc import Callable, Mapping, Sequence

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from .grammar import Format, GrammarError

_ANY = r"/(.|\n)*/"


def lark(form: Format) -> str:
    """Return llguidance's grammar of a tree.

    Raises:
        GrammarError: the tree is malformed, or has a format that is not built here.
    """
    writer = _Writer()
    writer.rules["start"] = writer.body(form)
    text = "%llguidance {}\n" + "\n".join(f"{name}: {body}" for name, body in writer.rules.items())
    if not writer.others:
        return text
    grammars = [{"name": "main", "lark_grammar": text}, *writer.others]
    return json.dumps({"grammars": grammars})


class _Writer:
    def __init__(self) -> None:
        self.rules: dict[str, str] = {}
        self.others: list[dict[str, str]] = []  # grammars that rules refer to by name

    def body(self, form: Format) -> str:
        kind = form.get("type") if isinstance(form, Mapping) else type(form).__name__
        if kind not in _BUILT:
            raise GrammarError("grammar", f"has a format {kind!r} that needs xgrammar")
        build: Callable[[Format], str] = getattr(self, f"_{kind}")
        try:
            return build(form)
        except (KeyError, TypeError, AttributeError) as error:
            raise GrammarError("grammar", f"has a malformed {kind}: {error!r}") from None

    def _rule(self, body: str, attributes: str = "") -> str:
        name = f"r{len(self.rules)}"
        self.rules[name + attributes] = body
        return name

    def _const_string(self, form: Format) -> str:
        return json.dumps(form["value"]) if form["value"] else '""'

    def _json_schema(self, form: Format) -> str:
        if form.get("style", "json") != "json":
            raise GrammarError("grammar", f"has parameters as {form['style']}: that needs xgrammar")
        schema = form["json_schema"]
        most = form.get("max_whitespace_cnt")
        if isinstance(schema, dict) and most is not None:
            how = {"whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{1,{most}}}"}
            schema = {**schema, "x-guidance": how}
        return f"%json {json.dumps(schema)}"

    def _regex(self, form: Format) -> str:
        return f"/{regex_to_lark(form['pattern'])}/"

    def _grammar(self, form: Format) -> str:
        name = f"g{len(self.others)}"
        text = form["grammar"]
        try:
            text = text if form.get("syntax") == "lark" else _root_as_start(gbnf_to_lark(text))
        except Exception as error:  # the converter raises whatever it trips over
            raise GrammarError("grammar", f"does not parse: {error}") from None
        self.others.append({"name": name, "lark_grammar": text})
        return f"@{name}"

    def _sequence(self, form: Format) -> str:
        return self._all(form["elements"])

    def _all(self, forms: Sequence[Format]) -> str:
        parts: list[str] = []
        rest = list(forms)
        while rest:
            head = rest.pop(0)
            if head.get("type") == "any_text" and rest and rest[0].get("type") == "const_string":
                parts.append(self._up_to(head, rest.pop(0)["value"]))
            else:
                parts.append(self._group(head))
        return " ".join(parts) or '""'

    def _group(self, form: Format) -> str:
        return self._rule(self.body(form))

    def _or(self, form: Format) -> str:
        return " | ".join(self._group(each) for each in form["elements"])

    def _any_text(self, form: Format) -> str:
        if form.get("max_tokens") is not None:
            raise GrammarError("grammar", "limits the tokens of a text: that needs xgrammar")
        name = f"T{len(self.rules)}"
        without = "".join(f" & ~/(.|\\n)*{_escaped(each)}(.|\\n)*/" for each in form["excludes"])
        self.rules[name] = _ANY + without
        return name

    def _up_to(self, form: Format, mark: str) -> str:
        """Text that ends with the first mark."""
        if form.get("max_tokens") is not None:
            raise GrammarError("grammar", "limits the tokens of a text: that needs xgrammar")
        return self._rule(f"/(.|\\n)*{_escaped(mark)}/", "[lazy]")

    def _tag(self, form: Format) -> str:
        ends = form["end"] if isinstance(form["end"], list) else [form["end"]]
        if len(ends) != 1:
            raise GrammarError("grammar", "has a tag with several ends: that needs xgrammar")
        constants = [{"type": "const_string", "value": each} for each in (form["begin"], ends[0])]
        return self._all([constants[0], form["content"], constants[1]])

    def _triggered_tags(self, form: Format) -> str:
        """Free text, in which each trigger begins one of its tags."""
        tags: list[str] = []
        for trigger in form["triggers"]:
            own = [tag for tag in form["tags"] if tag["begin"].startswith(trigger)]
            rests = [self._group({**tag, "begin": tag["begin"][len(trigger) :]}) for tag in own]
            lead = self._rule(f"/(.|\\n)*{_escaped(trigger)}/", "[lazy]")
            only = json.dumps(trigger)
            if form.get("at_least_one") and form.get("stop_after_first"):
                tags.append(self._rule(f"{only} ({' | '.join(rests)})"))
            else:
                tags.append(self._rule(f"{lead} ({' | '.join(rests)})"))
        some = f"({' | '.join(tags)})"
        if form.get("stop_after_first"):
            return some if form.get("at_least_one") else f"{some} | {self._rest(form)}"
        return f"{some}{'+' if form.get('at_least_one') else '*'} {self._rest(form)}"

    def _rest(self, form: Format) -> str:
        without = [*form.get("excludes", []), *form["triggers"]]
        return self._any_text({"type": "any_text", "excludes": without})

    def _tags_with_separator(self, form: Format) -> str:
        one = self._rule(" | ".join(self._group(tag) for tag in form["tags"]))
        if form.get("stop_after_first"):
            return one if form.get("at_least_one") else f"{one}?"
        separator = json.dumps(form["separator"]) if form["separator"] else ""
        more = self._rule(f"{one} ({separator} {one})*")
        return more if form.get("at_least_one") else f"{more}?"

    def _optional(self, form: Format) -> str:
        return self._group(form["content"]) + "?"

    def _star(self, form: Format) -> str:
        return self._group(form["content"]) + "*"

    def _plus(self, form: Format) -> str:
        return self._group(form["content"]) + "+"


_BUILT = frozenset(
    (
        *("const_string", "json_schema", "regex", "grammar", "sequence", "or", "any_text", "tag"),
        *("triggered_tags", "tags_with_separator", "optional", "star", "plus"),
    )
)


_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def _escaped(text: str) -> str:
    """Return a regular expression between slashes that matches a text."""
    special = r"\.+*?()|[]{}^$/"
    return "".join("\\" + char if char in special else _ESCAPES.get(char, char) for char in text)


def _root_as_start(text: str) -> str:
    return text if re.search(r"^start\s*:", text, re.M) else f"start: root\n{text}"
