# SPDX-License-Identifier: MIT
"""Chat templates that end: each turn of a loop and each call of a macro looks at a budget of time,
and no value may grow beyond what a prompt can be.
"""

import re
import time
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

TICK = "render_budget_tick"
_TURN, _ADD, _CONCAT = "turn!", "+", "~"
_LOOK_EVERY = 16
_MAX_POWER_BITS = 4096
# Read at each turn of a loop; they can neither be changed nor lead out by a public attribute.
_READ_ONLY = frozenset({str, LoopContext, Namespace})
_OF_LOOPS = frozenset({"first", "last", "index", "index0", "previtem", "nextitem", "length"})
_WIDE = re.compile(r"\*|\d{6,}")


class BudgetError(Exception):
    """A template took too long, or made too large a value."""


class Budget:
    """CPU time of one rendering on one thread; the template calls `tick`."""

    def __init__(self, seconds: float) -> None:
        self._end = time.thread_time() + seconds
        self._seconds = seconds
        self._ticks = 0

    def tick(self) -> str:
        """Count one turn.  Raises BudgetError when the time is spent."""
        self._ticks += 1
        if self._ticks % _LOOK_EVERY == 0 and time.thread_time() > self._end:
            raise BudgetError(f"it took more than {self._seconds:g} s of CPU time")
        return ""


class BudgetedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates call `TICK`, a variable that each rendering is given."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, max_chars: int, **options: Any) -> None:
        super().__init__(**options)
        self._max_chars = max_chars
        # Filters, since a template calls them directly; it cannot write their names.
        self.filters |= {_TURN: lambda tick: tick(), _ADD: self._added, _CONCAT: self._joined}

    def budgeted(self, source: str) -> jinja2.Template:
        """Compile a template.  Raises jinja2.TemplateError."""
        if TICK in source:
            raise jinja2.TemplateError(f"{TICK} is a name of ours")
        tree = self.parse(source)
        tree.body.insert(0, _tick(1))  # so that loops need not look its name up
        for loop in tree.find_all(nodes.For):
            loop.body.insert(0, _tick(loop.lineno))
        for macro in tree.find_all(nodes.Macro):
            macro.body.insert(0, _tick(macro.lineno))
        for call in tree.find_all(nodes.CallBlock):
            call.body.insert(0, _tick(call.lineno))
        _replace_sums(tree)
        code = self.compile(tree)
        return self.template_class.from_code(self, code, self.make_globals(None), None)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return what `obj.attribute` means; the sandbox takes longer for what is read most."""
        kind = type(obj)
        if kind is dict and attribute in obj and not hasattr(dict, attribute):
            return obj[attribute]
        if kind is LoopContext and attribute in _OF_LOOPS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute; the sandbox takes longer to say the same."""
        if type(obj) in _READ_ONLY:
            return not attr.startswith("_")
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what cannot grow beyond bounds."""
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * max(0, right) > _MAX_POWER_BITS:
                raise BudgetError("a power is too large")
        elif operator == "*":
            for sized, count in ((left, right), (right, left)):
                if isinstance(sized, str | list | tuple) and isinstance(count, int):
                    self._check(len(sized) * count)
        elif operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise BudgetError("a format is too wide")
        return super().call_binop(context, operator, left, right)

    def _added(self, *parts: Any) -> Any:
        """Return what `a + b + c` does; texts are copied once, not once for each sign."""
        if set(map(type, parts)) == {str}:  # a Markup would escape what it is added to
            text = "".join(parts)
            if len(text) > self._max_chars:
                self._check(len(text))
            return text
        total, *others = parts
        for part in others:
            if isinstance(total, str | list | tuple):
                self._check(len(total) + (len(part) if hasattr(part, "__len__") else 0))
            total = total + part
        return total

    def _joined(self, *parts: Any) -> str:
        """Return what `a ~ b` does."""
        return self._checked("".join(map(str, parts)))

    def _checked(self, text: str) -> str:
        self._check(len(text))
        return text

    def _check(self, chars: int) -> None:
        if chars > self._max_chars:
            raise BudgetError(f"a value is longer than {self._max_chars}")


def _tick(line: int) -> nodes.ExprStmt:
    statement = nodes.ExprStmt(_filtered(_TURN, [nodes.Name(TICK, "load")]))
    statement.set_lineno(line)
    return statement


def _replace_sums(node: nodes.Node) -> None:
    """Put a bounded filter in the place of each `a + b + c` and `a ~ b`."""
    for name, value in node.iter_fields():
        if isinstance(value, list):
            value[:] = map(_bounded, value)
        else:
            setattr(node, name, _bounded(value))
    for child in node.iter_child_nodes():
        _replace_sums(child)


def _bounded(value: Any) -> Any:
    if isinstance(value, nodes.Concat):
        return _filtered(_CONCAT, value.nodes).set_lineno(value.lineno)
    if not isinstance(value, nodes.Add):
        return value
    line, terms = value.lineno, []
    while isinstance(value, nodes.Add):
        terms.append(value.right)
        value = value.left
    return _filtered(_ADD, [value, *reversed(terms)]).set_lineno(line)


def _filtered(name: str, parts: list[nodes.Expr]) -> nodes.Filter:
    return nodes.Filter(parts[0], name, parts[1:], [], None, None)
