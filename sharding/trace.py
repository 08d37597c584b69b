# SPDX-License-Identifier: MIT
"""The tracer: runs an author's function on values that record equations over a closed op set."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
from torch import Tensor

from .budget import Budget
from .equation import Equation, Pin, Scan
from .error import TraceError, explained
from .fix import annotate
from .host import check_hosts
from .line import Line, author_line
from .op import Op
from .rule import Rule
from .spec import Placement
from .tree import Declared, leaves
from .value import Value


class Stack:
    """The layers of a parameter or cache tree: values are made only for layers that are touched."""

    def __init__(self, graph: "Graph", path: str, kind: str, items: Sequence[Any]) -> None:
        self.graph, self.path, self.kind, self.items = graph, path, kind, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.graph.inputs(self.items[index], f"{self.path}.{index}", self.kind)


class Graph:
    """Equations in the order in which the author's function made them."""

    def __init__(self) -> None:
        self.equations: list[Equation | Pin | Scan] = []
        self.regions: tuple[str, ...] = ()
        self.calls: dict[tuple[str, ...], int] = {}
        self.budgets: dict[tuple[str, ...], Budget] = {}
        self.values: list[Value] = []

    @contextmanager
    def region(self, name: str, budget: Budget | None) -> Iterator[None]:
        """Attribute the equations made inside to this call of function `name` and its budget."""
        outer = self.regions
        calls = self.calls.get((*outer, name), 0) + 1
        self.calls[(*outer, name)] = calls
        self.regions = (*outer, name if calls == 1 else f"{name}#{calls}")
        if budget is not None:
            self.budgets[self.regions] = budget
        try:
            yield
        finally:
            self.regions = outer

    def inputs(self, tree: Any, path: str, kind: str) -> Any:
        """Return `tree` with its declared leaves replaced by values, layer tuples by stacks."""
        if isinstance(tree, tuple):
            return Stack(self, path, kind, tree)
        if isinstance(tree, Declared):
            value = Value(
                self,
                path,
                kind,
                tree.spec.names,
                tree.sizes,
                tree.dtype,
                tree.placement.line,
                tree.placement,
            )
            self.values.append(value)
            return value
        if tree is None or not attrs.has(type(tree)):
            return tree
        return type(tree)(
            **{
                field.name: self.inputs(
                    getattr(tree, field.name), f"{path}.{field.name}".lstrip("."), kind
                )
                for field in attrs.fields(type(tree))
            }
        )

    def like(self, value: Value, name: str, kind: str) -> Value:
        """Return a new input of this graph that looks like a value of another graph."""
        made = Value(
            self, name, kind, value.names, value.sizes, value.dtype, value.line, value.placement
        )
        self.values.append(made)
        return made

    def own(self, args: Any, line: Line) -> tuple[Value, ...]:
        """Return the traced leaves of `args`, all of which must be live values of this graph."""
        found = []
        for path, leaf in leaves(args):
            if isinstance(leaf, (Tensor, Declared)):
                raise TraceError(
                    explained(
                        line,
                        f"argument {path} is a concrete {type(leaf).__name__}",
                        why="a constant made inside a model has no placement and no owner",
                        fixes=["make it a field of the params and let the family derive it"],
                    )
                )
            if not isinstance(leaf, Value):
                continue
            if leaf.graph is not self:
                raise TraceError(
                    explained(
                        line,
                        f"{leaf!r} belongs to the function around this layer",
                        why="a layer is traced once and may only use its own arguments",
                        fixes=["pass it to `scan` as a further argument of the layer"],
                    )
                )
            if leaf.consumed:
                raise TraceError(
                    explained(
                        line,
                        f"{leaf!r} was donated at {leaf.consumed} and is used again",
                        why="its buffer has been overwritten; this reads the new contents",
                        fixes=["use the cache that the op at that line returned"],
                    )
                )
            found.append(leaf)
        return tuple(found)

    def record(self, op: Op, args: tuple[Any, ...], rule: Rule | None) -> Any:
        """Append an equation and return the op's result."""
        line = author_line()
        found = self.own(args, line)
        count = len((rule or op.rule).inputs)
        if len(found) < count:
            raise TraceError(f"{line}: {op.name} needs {count} traced operands, got {len(found)}")
        operands = found[:count]
        bound = (rule or op.rule).expanded(tuple(len(value.names) for value in operands))
        names, sizes = _bind(op, bound, operands, args, line)
        check_hosts(op.name, op.hosts, args, names, sizes, line)
        labels = self.labels(op, operands, line)
        dtypes = op.dtype(operands[op.dtype_of].dtype)
        results = []
        for index, factors in enumerate(bound.outputs):
            donor = next((i for i, o in op.donates if o == index), None)
            if donor is not None:
                operands[donor].consumed = line
                results.append(self.like(operands[donor], operands[donor].name, "cache"))
                continue
            value = Value(
                self,
                labels[index],
                "activation",
                tuple(names[factor] for factor in factors),
                tuple(sizes[factor] for factor in factors),
                dtypes[index] if isinstance(dtypes, tuple) else dtypes,
                line,
            )
            self.values.append(value)
            results.append(value)
        flat = tuple(results)
        self.equations.append(
            Equation(op, bound, args, operands, found[count:], flat, line, self.regions)
        )
        if op.result:
            return op.result(args, flat)
        return flat[0] if len(flat) == 1 else flat

    def labels(self, op: Op, operands: tuple[Value, ...], line: Line) -> tuple[str, ...]:
        """Return names for an op's results: what the author's line assigns, or a good guess."""
        fresh = len(op.rule.outputs) - len(op.donates)
        assigned = line.assigned()
        if len(assigned) == fresh + bool(op.donates):
            return assigned
        if op.rule.outputs[0] == op.rule.inputs[0]:
            return (operands[0].name,) * fresh
        return (self.regions[-1].partition("#")[0] if self.regions else op.name,) * fresh

    def pin(self, value: Value, placement: Placement, alias: str | None) -> Value:
        """Record that `value` meets an annotation."""
        line = author_line()
        self.own((value,), line)
        names = placement.spec.names
        if value.names != names:
            raise TraceError(
                explained(
                    line,
                    f"a value with dims '{' '.join(value.names)}' meets the annotation "
                    f"'{placement.spec}' of {placement.line}",
                    operands=[repr(value)],
                    fixes=[annotate("it", " ".join(value.names), placement.line)],
                )
            )
        result = self.like(value, value.name, value.kind)
        self.equations.append(Pin(value, result, placement, alias, line, self.regions))
        return result


def _bind(
    op: Op, rule: Rule, operands: tuple[Value, ...], args: tuple[Any, ...], line: Line
) -> tuple[dict[str, str], dict[str, int | None]]:
    names: dict[str, str] = {}
    sizes: dict[str, int | None] = {}
    for factors, value in zip(rule.inputs, operands, strict=True):
        if len(factors) != len(value.names):
            raise TraceError(
                f"{line}: {op.name} takes '{' '.join(factors)}', got {value!r} with "
                f"{len(value.names)} dims"
            )
        for factor, name, size in zip(factors, value.names, value.sizes, strict=True):
            known = sizes.setdefault(factor, size)
            if names.setdefault(factor, name) != name:
                raise TraceError(
                    explained(
                        line,
                        f"{op.name} meets dim {name!r} where it met {names[factor]!r}",
                        operands=[repr(each) for each in operands],
                        why="dims of equal size but other meaning would be combined",
                        fixes=["name both dims alike, or combine other values"],
                    )
                )
            if known != size and None not in (known, size):
                raise TraceError(
                    explained(
                        line,
                        f"{op.name} needs one size for dim {name!r}, got {known} and {size}",
                        operands=[
                            f"{each!r}: {' x '.join(map(str, each.sizes))}" for each in operands
                        ],
                        fixes=["give both operands the same dim"],
                    )
                )
    for factor, size in op.sizes(sizes, args).items():
        names[factor], sizes[factor] = factor, size
    return names, sizes


def graph_of(tree: Any) -> Graph | None:
    """Return the graph of the first traced leaf of `tree`, or None if there is none."""
    if isinstance(tree, (Value, Stack)):
        return tree.graph
    if isinstance(tree, (tuple, list)):
        items: Sequence[Any] = tree
    elif isinstance(tree, dict):
        items = tuple(tree.values())
    elif attrs.has(type(tree)):
        items = [getattr(tree, field.name) for field in attrs.fields(type(tree))]
    else:
        return None
    return next((graph for item in items if (graph := graph_of(item))), None)


def trace(
    function: Callable[..., Any], params: Any, caches: Any, batch: Any, *static: Any
) -> "Traced":
    """Trace `function(params, caches, batch, *static) -> (results, caches)` on declared trees."""
    graph = Graph()
    results, caches_out = function(
        graph.inputs(params, "", "param"),
        graph.inputs(caches, "caches", "cache"),
        graph.inputs(batch, "batch", "batch"),
        *static,
    )
    return Traced(graph, graph.own(results, author_line()), caches_out)


@attrs.frozen(eq=False)
class Traced:
    """A traced program: its graph, flat results, and the caches it hands back."""

    graph: Graph
    results: tuple[Value, ...]
    caches: Any

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """Return the graph of the program and that of each distinct layer."""
        scans = [each for each in self.graph.equations if isinstance(each, Scan)]
        blocks = [run.block.graph for scan in scans for run in scan.runs]
        return (self.graph, *dict.fromkeys(blocks))

    @property
    def aliases(self) -> frozenset[str]:
        """Return the names of the boundary types that a layout may override."""
        pins = [e for graph in self.graphs for e in graph.equations if isinstance(e, Pin)]
        return frozenset(pin.alias for pin in pins if pin.alias)
