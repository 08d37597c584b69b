# SPDX-License-Identifier: MIT
"""Fixes: changes to an author's line or layout that a person or a program can apply."""

import linecache
import re

import attrs

from .line import Line

_LITERAL = re.compile(r"""(["'])(.*?)\1""")


@attrs.frozen
class Fix:
    """What to do, and, where it is one edit, the text to replace on which line.

    A fix of the layout gives what `Layout.but` takes instead: `place`, or a `mesh`.
    """

    text: str
    line: Line | None = None
    before: str = ""
    after: str = ""
    place: tuple[tuple[str, str], ...] = ()
    mesh: str = ""

    def __str__(self) -> str:
        return self.text

    @property
    def applies(self) -> bool:
        """Return whether the fix is an edit of a source line."""
        return self.line is not None and bool(self.before)

    def applied(self, source: str) -> str:
        """Return the text of the fix's file with the edit made.

        Raises:
            ValueError: the fix is no edit, or the line has changed since.
        """
        lines = source.splitlines(keepends=True)
        number = self.line.number if self.line else 0
        if not self.applies or number > len(lines) or self.before not in lines[number - 1]:
            raise ValueError(f"fix {self.text!r} does not apply to line {number} of this text")
        lines[number - 1] = lines[number - 1].replace(self.before, self.after, 1)
        return "".join(lines)


def annotate(what: str, spec: object, line: Line) -> Fix:
    """Return the fix that writes another placement string in the annotation on `line`."""
    text = f"annotate {what} as '{spec}' (at {line})"
    found = _LITERAL.search(linecache.getline(line.path, line.number))
    return Fix(text, line, found[0], f'"{spec}"') if found else Fix(text)


def replace(text: str, line: Line, before: str, after: str) -> Fix:
    """Return the fix that writes `after` for `before`, which must stand on `line` once."""
    stands = linecache.getline(line.path, line.number).count(before)
    return Fix(text, line, before, after) if before and stands == 1 else Fix(text)


def move(name: str, spec: object, line: Line) -> Fix:
    """Return the fix that hands value `name` to the op on `line` in another placement."""
    text = f"move {name} first: place({name}, '{spec}')"
    source = linecache.getline(line.path, line.number)
    head, equals, tail = (
        source.partition("=") if re.match(r"\s*\w+ =", source) else ("", "", source)
    )
    uses = list(re.finditer(rf"(?<![\w.]){re.escape(name)}(?![\w(.])", tail))
    if len(uses) != 1:
        return Fix(text)
    start, end = uses[0].span()
    made = f"{head}{equals}{tail[:start]}place({name}, '{spec}'){tail[end:]}"
    return Fix(text, line, source.rstrip("\n"), made.rstrip("\n"))
