# SPDX-License-Identifier: MIT
"""`scan`: run one function over all layers; traced, each distinct layer is traced once."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .equation import Block, Run, Scan
from .error import TraceError, explained
from .line import Line, author_line
from .trace import Graph, Stack, graph_of
from .tree import leaves, map_leaves
from .value import Value

L = TypeVar("L")
C = TypeVar("C")
K = TypeVar("K")


def scan(
    layer: Callable[..., tuple[C, K]],
    layers: Sequence[L],
    carry: C,
    caches: Sequence[K],
    *constants: Any,
) -> tuple[C, tuple[K, ...]]:
    """Run `carry, cache = layer(params, carry, cache, *constants)` over layers and caches.

    Every layer must hand on a carry of the type that it received.  Layers whose declared params
    and cache are equal share one block, so tracing does not grow with depth.

    Raises:
        TraceError: a carry changes its dims or dtype, or layers and caches differ in number.
    """
    if len(layers) != len(caches):
        raise TraceError(f"{author_line()}: scan over {len(layers)} layers, {len(caches)} caches")
    graph = graph_of(carry)
    if graph is not None:
        assert isinstance(layers, Stack), "a traced carry goes with declared layers"
        assert isinstance(caches, Stack), "a traced carry goes with declared caches"
        recorded: tuple[C, tuple[K, ...]] = _record(
            graph, layer, layers, carry, caches, constants, author_line()
        )
        return recorded
    done = []
    for params, cache in zip(layers, caches, strict=True):
        carry, cache = layer(params, carry, cache, *constants)
        done.append(cache)
    return carry, tuple(done)


def _record(
    graph: Graph,
    layer: Callable[..., Any],
    layers: Stack,
    carry: Any,
    caches: Stack,
    constants: tuple[Any, ...],
    line: Line,
) -> Any:
    carried = graph.own(carry, line)
    passed = graph.own(constants, line)
    blocks: dict[tuple[int, int], Block] = {}
    runs: list[Run] = []
    for index, (params, cache) in enumerate(zip(layers.items, caches.items, strict=True)):
        # Declared trees are shared between equal layers, so identity is structural equality.
        key = (id(params), id(cache))
        if key not in blocks:
            name = f"{getattr(layer, '__name__', 'layer')}_{len(blocks)}"
            blocks[key] = _block(name, layer, params, carry, cache, constants, line)
        if runs and runs[-1].block is blocks[key]:
            runs[-1] = Run(runs[-1].start, index + 1, blocks[key])
        else:
            runs.append(Run(index, index + 1, blocks[key]))
    results = tuple(graph.like(value, value.name, "activation") for value in carried)
    graph.equations.append(
        Scan(tuple(runs), layers.path, carried, passed, results, line, graph.regions)
    )
    remaining = iter(results)
    done = Stack(graph, caches.path, caches.kind, caches.items)
    return map_leaves(lambda _, leaf: _next(remaining, leaf), carry), done


def _next(values: Any, leaf: Any) -> Any:
    return next(values) if isinstance(leaf, Value) else leaf


def _block(
    name: str,
    layer: Callable[..., Any],
    params: Any,
    carry: Any,
    cache: Any,
    constants: tuple[Any, ...],
    line: Line,
) -> Block:
    graph = Graph()
    own_params = graph.inputs(params, "", "param")
    own_cache = graph.inputs(cache, "kv", "cache")

    def enter(kind: str) -> Callable[[str, Any], Any]:
        def make(path: str, leaf: Any) -> Any:
            if not isinstance(leaf, Value):
                return leaf
            label = leaf.name if kind == "constant" else (path.rpartition(".")[2] or "carry")
            # The step's batch stays the batch inside a layer: ops read its columns there too.
            return graph.like(leaf, label, "batch" if leaf.kind == "batch" else kind)

        return make

    own_carry = map_leaves(enter("carry"), carry)
    own_constants = tuple(map_leaves(enter("constant"), item) for item in constants)
    carry_in = tuple(leaf for _, leaf in leaves(own_carry) if isinstance(leaf, Value))
    params_in = tuple(leaf for _, leaf in leaves(own_params) if isinstance(leaf, Value))
    cache_in = tuple(leaf for _, leaf in leaves(own_cache) if isinstance(leaf, Value))
    constants_in = tuple(leaf for _, leaf in leaves(own_constants) if isinstance(leaf, Value))
    out, cache_out = layer(own_params, own_carry, own_cache, *own_constants)
    carry_out = graph.own(out, line)
    for before, after in zip(carry_in, carry_out, strict=False):
        if (before.names, before.sizes, before.dtype) != (after.names, after.sizes, after.dtype):
            raise TraceError(_changed(line, repr(before), repr(after)))
    if len(carry_in) != len(carry_out):
        raise TraceError(_changed(line, f"{len(carry_in)} values", f"{len(carry_out)} values"))
    return Block(
        name,
        graph,
        params_in,
        cache_in,
        carry_in,
        constants_in,
        carry_out,
        graph.own(cache_out, line),
    )


def _changed(line: Line, before: str, after: str) -> str:
    return explained(
        line,
        f"a layer receives {before} and hands on {after}",
        why="the next layer runs the same program and expects the same type",
        fixes=["return a carry with the dims, sizes and dtype of the one that came in"],
    )
