# SPDX-License-Identifier: MIT
"""Alternatives: what an author may write for a torch expression that is not in the op set."""

import ast
from collections.abc import Sequence
from typing import Any

from .fix import Fix, replace
from .line import author_expression, author_line
from .op import Recorder

_RENAMED = {
    "zeros_like": "zeros_like",
    "embedding": "embedding",
    "silu_mul": "silu_mul",
}


def alternatives(name: str, args: tuple[Any, ...]) -> list[Fix]:
    """Return the op calls that compute what the author's failing expression asks for.

    `name` is the torch function's or tensor method's, `args` what it was given.
    """
    line, text = author_expression()
    written = _written(name, args, text)
    if written is None:
        return []
    before = text + "()" if name in ("float", "double") and not text.endswith(")") else text
    return [replace(f"write {written}", line, before, written)]


def relabelled(equation: str, operands: Sequence[tuple[str, ...]]) -> list[Fix]:
    """Return the edits of an einsum whose labels are not the names of its operands' dims."""
    left, _, right = equation.partition("->")
    labels = [tuple(side.split()) for side in left.split(",")]
    if (
        not right
        or len(labels) != len(operands)
        or list(map(len, labels)) != list(map(len, operands))
    ):
        return []
    names = dict(
        pair
        for before, after in zip(labels, operands, strict=True)
        for pair in zip(before, after, strict=True)
    )
    sides = ", ".join(" ".join(side) for side in operands)
    found = []
    for made in (right.strip(), " ".join(names.get(label, label) for label in right.split())):
        text = f"{sides} -> {made}"
        if set(made.split()) <= {name for side in operands for name in side}:
            found.append(replace(f"write {text!r}", author_line(), f'"{equation}"', f'"{text}"'))
    return list(dict.fromkeys(found))


def _written(name: str, args: tuple[Any, ...], text: str) -> str | None:
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    parts = [ast.unparse(part) for part in _parts(node)]
    values = [arg for arg in args if isinstance(arg, Recorder)]
    if name in ("matmul", "linear", "mm") and len(values) == len(parts) == 2:
        return _product(name, values[0].names, values[1].names, parts)
    if name == "einsum" and parts and isinstance(args[0], str):
        return _renamed(args[0], values, parts[1:])
    if name == "sub" and len(parts) == 2:
        return f"{parts[0]} + {parts[1]} * -1.0"
    if name == "neg" and len(parts) == 1:
        return f"{parts[0]} * -1.0"
    if name == "div" and len(parts) == 2 and not isinstance(args[-1], Recorder):
        return f"{parts[0]} * (1 / {parts[1]})"
    if name == "float" and isinstance(node, ast.Attribute):
        return f"widen({ast.unparse(node.value)})"
    if name == "rms_norm" and len(parts) == 4:
        return f"rms_norm({parts[0]}, {parts[2]}, {parts[3]})"
    if name == "getitem" and isinstance(args[-1], Recorder) and isinstance(node, ast.Subscript):
        return f"take_rows({ast.unparse(node.value)}, {ast.unparse(node.slice)})"
    return f"{_RENAMED[name]}({', '.join(parts)})" if name in _RENAMED else None


def _parts(node: ast.expr) -> list[ast.expr]:
    match node:
        case ast.BinOp():
            return [node.left, node.right]
        case ast.UnaryOp():
            return [node.operand]
        case ast.Call():
            method = isinstance(node.func, ast.Attribute) and not (
                isinstance(node.func.value, (ast.Name, ast.Attribute))
                and ast.unparse(node.func.value).split(".")[0] in ("torch", "F")
            )
            own = [node.func.value] if method and isinstance(node.func, ast.Attribute) else []
            return [*own, *node.args, *(keyword.value for keyword in node.keywords)]
    return []


def _product(
    name: str, left: tuple[str, ...], right: tuple[str, ...], parts: list[str]
) -> str | None:
    shared = right[-1] if name == "linear" else right[0]
    kept = right[:-1] if name == "linear" else right[1:]
    if left[-1] != shared or set(kept) & set(left[:-1]):
        return None
    made = " ".join((*left[:-1], *kept))
    equation = f"{' '.join(left)}, {' '.join(right)} -> {made}"
    return f'einsum("{equation}", {parts[0]}, {parts[1]})'


def _renamed(equation: str, values: list[Any], parts: list[str]) -> str | None:
    """Return an einsum of letters as one of dim names."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    letters = left.split(",")
    if not arrow or len(letters) != len(values):
        return None
    names: dict[str, str] = {}
    for word, value in zip(letters, values, strict=True):
        if len(word) != len(value.names):
            return None
        for letter, dim in zip(word, value.names, strict=True):
            if names.setdefault(letter, dim) != dim:
                return None
    sides = [" ".join(value.names) for value in values]
    made = " ".join(names[letter] for letter in right)
    return f'einsum("{", ".join(sides)} -> {made}", {", ".join(parts)})'
