# SPDX-License-Identifier: MIT
"""A second opinion on a traced function: functorch's trace of the same code on real tensors.

`make_fx(functionalize(f))` runs the function through torch's dispatcher.  Each op of ours is one
opaque call there, which does not write: native kernels read memory by address and cannot be given
functorch's tensors, and what happens inside an op is for the op's own tests.  What is left is the
author's part: which op reads which value, in which order, and whatever is done to tensors besides.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NoReturn

import attrs
import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

from .finding import Finding
from .sharding import leaves, map_leaves, trace
from .sharding.equation import Equation, Pin, Scan
from .sharding.op import Op, Recorder
from .sharding.rule import Rule
from .sharding.trace import Graph, Traced
from .sharding.value import Value

# What functorch writes for the operators of traced values; the second is with a number.
_OPERATORS = {"aten.add.Tensor": ("add", "shift"), "aten.mul.Tensor": ("mul", "scale")}
_SAME = ("aten.alias.default", "aten.detach.default")
Source = tuple[int | str, int]  # which result of which step, or the path of an argument and 0


@attrs.frozen
class Step:
    """An op as both traces tell it: its name, numbers and strings, and where each operand is from.

    `writes` marks an op that hands back a cache.
    """

    name: str
    static: tuple[Any, ...]
    sources: tuple[Source, ...]
    writes: bool

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}.{index}' for name, index in self.sources)})"


def second_opinion(
    function: Callable[..., Any], declared: Sequence[Any], given: Sequence[Any], *static: Any
) -> Iterator[Finding]:
    """Yield what functorch says of `function(params, caches, batch, *static) -> (result, caches)`.

    `declared` are the three trees that it is traced on, `given` the same of tensors.

    Raises:
        TraceError: the function cannot be traced.
    """
    first, calls = _functorch(function, given, static)
    paths = [f"{root}{path}" for root, path, _ in _named(given)]
    inputs = [node for node in first.graph.nodes if node.op == "placeholder"]
    names = dict(zip(inputs, paths, strict=True))
    written = [
        names[node.args[0]]
        for node in first.graph.nodes
        if str(node.target) == "aten.copy_.default" and node.args[0] in names
    ]
    yield Finding(
        "functorch: no argument is written to",
        not written,
        ", ".join(dict.fromkeys(written)) or f"{len(inputs)} arguments, as they were",
    )
    hidden = [str(node.target) for node in first.graph.nodes if node.op == "get_attr"]
    again, _ = _functorch(function, given, static)
    same = _text(first) == _text(again)
    unlike = "" if same else "two runs differ: it keeps state"
    yield Finding(
        "functorch: nothing is read but arguments",
        not hidden and same,
        ", ".join([*hidden[:3], *([unlike] if unlike else [])]) or "two runs are one graph",
    )
    if written or hidden or not same:
        return
    theirs = _live(*_of_functorch(first, names, calls))
    ours = _live(*_of_trace(trace(function, *declared, *static)))
    odd = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if odd is None and len(ours) != len(theirs):
        odd = min(len(ours), len(theirs))
    detail = f"{len(ours)} ops, the same in both"
    if odd is not None:
        sides = (str(side[odd]) if odd < len(side) else "nothing" for side in (ours, theirs))
        detail = f"op {odd}: traced {next(sides)}, ran {next(sides)}"
    yield Finding("functorch: the trace is what runs", odd is None, detail)


class Seen(Recorder):
    """A tensor of functorch's: torch functions go through it, ops of ours are opaque calls."""

    def __init__(self, tensor: Tensor, calls: "Calls") -> None:
        self.tensor, self.calls = tensor, calls

    def record(self, op: Op, args: tuple[Any, ...], rule: Rule | None = None) -> Any:
        found = [leaf.tensor for _, leaf in leaves(args) if isinstance(leaf, Seen)]
        made = _library().call(self.calls.keep(op, args), found)
        results = tuple(Seen(each, self.calls) for each in made)
        if op.result:
            return op.result(args, results)
        return results[0] if len(results) == 1 else results

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        seen = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, Seen))
        return seen._through(function, *args, **(kwargs or {}))

    def _through(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        plain = tree_map(_tensor, (args, kwargs))
        result = function(*plain[0], **plain[1])
        return tree_map(lambda x: Seen(x, self.calls) if isinstance(x, Tensor) else x, result)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if callable(getattr(self.tensor, name)):
            method = getattr(Tensor, name)
            return lambda *args, **kwargs: self._through(method, self, *args, **kwargs)
        return self._through(lambda x: getattr(x, name), self)

    def __add__(self, other: Any) -> Any:
        return self._through(torch.add, self, other)

    def __mul__(self, other: Any) -> Any:
        return self._through(torch.mul, self, other)

    __radd__, __rmul__ = __add__, __mul__

    def _host(self, *args: Any) -> NoReturn:
        raise TypeError("the host reads a tensor's value: a traced function has one control flow")

    __bool__ = __int__ = __float__ = __len__ = __iter__ = __index__ = _host


def _tensor(x: Any) -> Any:
    return x.tensor if isinstance(x, Seen) else x


class Calls:
    """The opaque calls of one run, by key: what the dispatcher cannot carry."""

    def __init__(self) -> None:
        self.made: list[tuple[Op, tuple[Any, ...]]] = []
        self.first = _next_key(self)

    def keep(self, op: Op, args: tuple[Any, ...]) -> int:
        self.made.append((op, args))
        return self.first + len(self.made) - 1


_MOST = 1 << 20  # calls of one run
_runs: list[Calls] = []


def _next_key(calls: Calls) -> int:
    _runs.append(calls)
    return (len(_runs) - 1) * _MOST


@cache
def _library() -> Any:
    """Return the namespace of the opaque op, which runs an op of ours on copies of its caches."""
    library: Any = torch.library.Library("tokenspeed_opinion", "DEF")  # type: ignore[no-untyped-call]
    library.define("call(int key, Tensor[] given) -> Tensor[]")

    def run(key: int, given: list[Tensor]) -> list[Tensor]:
        op, args = _runs[key // _MOST].made[key % _MOST]
        donated = {operand for operand, _ in op.donates}
        rest = iter([x.clone() if i in donated else x for i, x in enumerate(given)])
        tensors = map_leaves(lambda _, leaf: next(rest) if isinstance(leaf, Seen) else leaf, args)
        return [leaf.clone() for _, leaf in leaves(op.run(*tensors))]

    library.impl("call", run, "CPU")
    _kept.append(library)
    return torch.ops.tokenspeed_opinion


_kept: list[Any] = []  # a library of torch lives as long as its object


def _named(trees: Sequence[Any]) -> Iterator[tuple[str, str, Any]]:
    for root, tree in zip(("", "caches.", "batch."), trees, strict=True):
        for path, leaf in leaves(tree):
            yield root, path, leaf


def _functorch(
    function: Callable[..., Any], given: Sequence[Any], static: Sequence[Any]
) -> tuple[GraphModule, Calls]:
    calls = Calls()

    def run(*flat: Tensor) -> tuple[Tensor, ...]:
        rest = iter(flat)
        trees = [map_leaves(lambda _, leaf: Seen(next(rest), calls), tree) for tree in given]
        made = function(*trees, *static)
        return tuple(_tensor(leaf) for _, leaf in leaves(made))

    # One tensor given twice would be one value to functorch.
    flat = [leaf.clone() for _, _, leaf in _named(given)]
    with torch.no_grad():
        return make_fx(functionalize(run, remove="mutations"))(*flat), calls


def _text(graph: GraphModule) -> str:
    keyless = [
        (node.op, str(node.target), [str(arg) for arg in node.args[_opaque(node) :]])
        for node in graph.graph.nodes
    ]
    return str(keyless)


def _opaque(node: Node) -> int:
    return int(str(node.target) == "tokenspeed_opinion.call.default")


def _static(args: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(arg for arg in args if isinstance(arg, (int, float, str)))


def _of_functorch(
    graph: GraphModule, names: dict[Node, str], calls: Calls
) -> tuple[list[Step], list[Source]]:
    sources: dict[Node, Source] = {node: (path, 0) for node, path in names.items()}
    steps: list[Step] = []
    for node in graph.graph.nodes:
        target = str(node.target)
        if _opaque(node):
            op, args = calls.made[node.args[0] % _MOST]
            found = tuple(sources[each] for each in node.args[1])
            steps.append(Step(op.name, _static(args), found, bool(op.donates)))
            sources[node] = (len(steps) - 1, 0)
        elif target == "<built-in function getitem>":
            sources[node] = (sources[node.args[0]][0], node.args[1])
        elif target in _SAME:
            sources[node] = sources[node.args[0]]
        elif node.op == "call_function":
            operands = tuple(sources[arg] for arg in node.args if isinstance(arg, Node))
            plain = tuple(arg for arg in node.args if not isinstance(arg, Node))
            known = _OPERATORS.get(target)
            steps.append(Step(known[bool(plain)] if known else target, plain, operands, False))
            sources[node] = (len(steps) - 1, 0)
        elif node.op == "output":
            return steps, [sources[node.args[0][0]]]
    raise AssertionError("a graph without output")


def _of_trace(traced: Traced) -> tuple[list[Step], list[Source]]:
    steps: list[Step] = []
    known: dict[Value, Source] = {}

    def source(value: Value, prefix: str) -> Source:
        if value in known:
            return known[value]
        root = {"param": prefix, "cache": "", "batch": ""}[value.kind]
        return (f"{root}{value.name}", 0)

    def walk(graph: Graph, prefix: str) -> None:
        for equation in graph.equations:
            match equation:
                case Equation():
                    found = tuple(source(value, prefix) for value in equation.reads)
                    static = _static(equation.args)
                    name, writes = equation.op.name, bool(equation.op.donates)
                    steps.append(Step(name, static, found, writes))
                    for index, value in enumerate(equation.results):
                        known[value] = (len(steps) - 1, index)
                case Pin():
                    known[equation.result] = source(equation.value, prefix)
                case Scan():
                    scan(equation, prefix)

    def scan(each: Scan, prefix: str) -> None:
        carry = [source(value, prefix) for value in each.carry]
        constants = [source(value, prefix) for value in each.constants]
        for run in each.runs:
            block = run.block
            for layer in range(run.start, run.stop):
                known.update(zip(block.carry, carry, strict=True))
                known.update(zip(block.constants, constants, strict=True))
                for value in block.cache:
                    known[value] = (f"caches.{layer}.{value.name.partition('.')[2]}", 0)
                walk(block.graph, f"{each.layers}.{layer}.")
                carry = [source(value, prefix) for value in block.carry_out]
        known.update(zip(each.results, carry, strict=True))

    walk(traced.graph, "")
    return steps, [source(value, "") for value in traced.results]


def _live(steps: list[Step], results: list[Source]) -> list[Step]:
    """Return the steps that the result or a cache needs, numbered anew."""
    needed = {place for place, _ in results}
    for index in reversed(range(len(steps))):
        if index in needed or steps[index].writes:
            needed |= {index, *(place for place, _ in steps[index].sources)}
    kept = [index for index in range(len(steps)) if index in needed]
    number = {index: at for at, index in enumerate(kept)}
    return [
        attrs.evolve(
            steps[index],
            sources=tuple(
                (number[place] if isinstance(place, int) else place, at)
                for place, at in steps[index].sources
            ),
        )
        for index in kept
    ]
