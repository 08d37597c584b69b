# SPDX-License-Identifier: MIT
"""Checks of a model definition: against transformers, on every small mesh, by the dispatcher.

The model is the definition's config as it stands, with random weights: give a tiny one.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .finding import Finding
from .model_definition import ModelDefinition
from .models.family import compile_plan
from .ops import Batch, declared_batch
from .oracle import oracle_of
from .second_opinion import second_opinion
from .sharding import (
    Layout,
    MeshError,
    Plan,
    ShardingError,
    VerificationError,
    leaves,
    map_leaves,
    trace,
)
from .sharding.equation import Equation
from .sharding.layout_text import parse_layout
from .sharding.recheck import recheck
from .sharding.region import prove
from .sharding.simulate import Simulation
from .sharding.trace import Traced
from .sharding.tree import Declared
from .sharding.value import Value

BLOCK, BLOCKS, PROMPT, STEPS = 4, 9, 16, 8
LAYOUTS = (
    "tp=1",
    "tp=2",
    "tp=4",
    "tp=2; Hidden=n@tp d",
    "tp=4; Hidden=n@tp d",
    "dp=2 tp=2",
    "tp=(kv=2,rep=2); k:kv g:rep",
)
TOLERANCE = 1e-4


def check(definition: ModelDefinition) -> Iterator[Finding]:
    """Yield what holds of a model, cheapest first.

    Raises:
        OracleError: transformers does not know the config's `model_type`.
        ShardingError: the model cannot be traced.
    """
    family, config = definition.family, definition.config
    declared = dict(leaves(family.params(config, torch.float32)))
    named = set(family.hf(config)) | set(family.derived(config))
    odd = sorted(named ^ set(declared))
    yield Finding("the names table covers every parameter", not odd, ", ".join(odd) or "all")
    if odd:
        return
    torch.manual_seed(7)
    oracle = oracle_of(definition)
    params = _params(definition, oracle, declared)
    tokens = torch.randint(0, int(oracle.config.vocab_size), (PROMPT + STEPS,))
    with torch.no_grad():
        answer = oracle(tokens[None])
    expected = (answer.last_hidden_state if definition.embeds else answer.logits)[0]
    eager, watched = _eager(definition, params)
    ours = _conversation(tokens, eager)
    worst = float((ours - expected).abs().max())
    rows = "hidden rows" if definition.embeds else "logits"
    what = f"{rows} of {PROMPT} + {STEPS} tokens equal transformers'"
    yield Finding(what, worst <= TOLERANCE, f"off by {worst:.1e}, of {expected.std():.1f}")
    yield _unchanged(watched)
    yield from _opinion(definition, params, tokens)
    yield from _meshes(definition, params, tokens)


def _params(
    definition: ModelDefinition, oracle: Any, declared: dict[str, Any]
) -> dict[str, Tensor]:
    state = oracle.state_dict()
    params = {}
    for path, source in definition.family.hf(definition.config).items():
        sizes = dict(zip(declared[path].spec.names, declared[path].sizes, strict=True))
        found = source.among(state)
        params[path] = found.whole(lambda name, window: state[name][window], sizes)
    return params | dict(definition.family.derived(definition.config))


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The dispatcher's own account: every call that writes to a tensor that is not a cache."""

    def __init__(self, kept: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept, self.calls = kept, 0
        self.written: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls += 1
        for value, given in zip(args, function._schema.arguments, strict=False):
            written = given.alias_info is not None and given.alias_info.is_write
            if written and isinstance(value, Tensor):
                path = self.kept.get(value.untyped_storage().data_ptr())
                self.written += [f"{function} writes {path}"] if path else []
        return function(*args, **(kwargs or {}))


def _eager(
    definition: ModelDefinition, params: dict[str, Tensor]
) -> tuple[Callable[[Batch], Tensor], Watch]:
    family, config = definition.family, definition.config
    tree = map_leaves(lambda path, _: params[path], family.params(config, torch.float32))
    caches = map_leaves(_empty, family.caches(config, BLOCK, torch.float32))
    watch = Watch({x.untyped_storage().data_ptr(): path for path, x in params.items()})

    def step(batch: Batch) -> Tensor:
        nonlocal caches
        with watch, torch.no_grad():
            logits, caches = family.forward(tree, caches, batch, config)
        return logits  # type: ignore[no-any-return]

    return step, watch


def _opinion(
    definition: ModelDefinition, params: dict[str, Tensor], tokens: Tensor
) -> Iterator[Finding]:
    family, config = definition.family, definition.config
    declared = (
        family.params(config, torch.float32),
        family.caches(config, BLOCK, torch.float32),
        declared_batch(),
    )
    given = (
        map_leaves(lambda path, _: params[path], declared[0]),
        map_leaves(_empty, declared[1]),
        _batch(tokens, 0, PROMPT, 1),
    )
    yield from second_opinion(family.forward, declared, given, config)
    yield from _regions(trace(family.forward, *declared, config))


def _regions(traced: Traced) -> Iterator[Finding]:
    """Yield whether each region of per-rank code is what it declares, on two ranks and on three."""
    found = {
        each.op: each
        for graph in traced.graphs
        for each in graph.equations
        if isinstance(each, Equation) and each.op.region
    }
    for op, each in found.items():
        detail, holds = "on 2 and 3 ranks an axis", True
        static = [arg for arg in each.args if not isinstance(arg, Value)]
        try:
            if not all(prove(op, [v.dtype for v in each.operands], static, n) for n in (2, 3)):
                detail = "Varying: held by the meshes below only"
        except VerificationError as error:
            detail, holds = str(error), False
        yield Finding(f"local region {op.name} is what it declares", holds, detail)


def _empty(_: str, leaf: Declared) -> Tensor:
    shape = [BLOCKS if size is None else size for size in leaf.sizes]
    return torch.zeros(shape, dtype=leaf.dtype)


def _unchanged(watch: Watch) -> Finding:
    detail = "; ".join(watch.written[:3]) or f"{watch.calls} dispatcher calls, none does"
    return Finding("no op writes to a parameter", not watch.written, detail)


def _meshes(
    definition: ModelDefinition, params: dict[str, Tensor], tokens: Tensor
) -> Iterator[Finding]:
    wide = {path: x.double() for path, x in params.items()}
    first: Tensor | None = None
    for text in LAYOUTS:
        what = f"simulated on {text}"
        try:
            plan = _plan(definition, parse_layout(text))
        except MeshError as error:
            yield Finding(what, True, f"does not fit: {str(error).splitlines()[0]}")
            continue
        except ShardingError as error:
            yield Finding(what, False, str(error))
            continue
        recheck(plan, plan.source)
        simulation = Simulation(plan, wide, BLOCKS)
        logits = _conversation(tokens, simulation.step, plan.mesh.num_ranks)
        first = logits if first is None else first
        worst = float((logits - first).abs().max())
        issued = len(simulation.collectives.log) / (STEPS + 1)
        detail = f"off by {worst:.0e} in float64, {issued:g} collectives a step"
        yield Finding(what, worst < 1e-10, detail)


def _plan(definition: ModelDefinition, layout: Layout) -> Plan:
    return compile_plan(
        definition.family,
        definition.config,
        layout,
        dtype=torch.float64,
        block_size=BLOCK,
    )


def _conversation(tokens: Tensor, step: Callable[[Batch], Tensor], multiple: int = 1) -> Tensor:
    """Return the logits of every token: a prefill of the prompt, then one token a step."""
    found = [step(_batch(tokens, 0, PROMPT, multiple))]
    for at in range(PROMPT, len(tokens)):
        found.append(step(_batch(tokens, at, at + 1, multiple)))
    return torch.cat(found)


def _batch(tokens: Tensor, start: int, stop: int, multiple: int) -> Batch:
    """Return the step of tokens `start` to `stop` of one request in blocks 1, 2, ..."""
    short = [0] * (-(stop - start) % multiple)
    places = range(start, stop)
    int32 = torch.int32
    return Batch(
        tokens=torch.tensor([*tokens[start:stop].tolist(), *short], dtype=int32),
        positions=torch.tensor([*places, *short], dtype=int32),
        cache_slots=torch.tensor([*(BLOCK + place for place in places), *short]),
        query_starts=torch.tensor([0, stop - start], dtype=int32),
        context_lens=torch.tensor([stop], dtype=int32),
        block_tables=torch.arange(1, BLOCKS, dtype=int32)[None],
        logit_rows=torch.arange(stop - start),
        state_blocks=torch.tensor([1]),
        num_rows=1,
        num_decode_rows=int(stop - start == 1),
        max_query=stop - start,
        max_context=stop,
    )
