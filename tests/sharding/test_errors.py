# SPDX-License-Identifier: MIT
"""A corpus of bad programs: each is refused, on the author's line, with what would fix it."""

import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from tokenspeed_core.ops import LayerKV, declared_batch, einsum, paged_attention, rms_norm
from tokenspeed_core.sharding import (
    BudgetError,
    Layout,
    Placed,
    PlacementError,
    Plan,
    ShardingError,
    TraceError,
    build,
    declare,
    module,
    scan,
    spmd,
    trace,
)

SIZES = {"d": 8, "e": 8, "k": 4, "g": 2, "h": 4, "f": 16, "layers": 2, "b": None, "s": 4}
Hidden = Placed[Tensor, "n d"]


@module
class Weights:
    square: Placed[Tensor, "d e"]
    up: Placed[Tensor, "d f@tp"]
    down: Placed[Tensor, "f@tp d"]
    other: Placed[Tensor, "e f@tp"]
    whole_up: Placed[Tensor, "d f"]
    whole_down: Placed[Tensor, "f d"]
    whole_bias: Placed[Tensor, "f"]
    sharded_norm: Placed[Tensor, "d@tp"]
    norm: Placed[Tensor, "d"]
    wide_norm: Placed[Tensor, "d"]
    wq: Placed[Tensor, "d k@tp g h"]
    wk: Placed[Tensor, "d k@tp h"]
    owed: Placed[Tensor, "d !tp"] | None


Body = Callable[[Any, Any, Any, Any], Any]


def compiled(body: Body, present: tuple[str, ...] = (), **layout: Any) -> Plan:
    """Compile a body `(weights, x, cache, batch) -> result` for two ranks; x is `n d`."""
    params = declare(Weights, SIZES, torch.float32, present)
    wide = declare(Weights, {**SIZES, "d": 16}, torch.float32).wide_norm
    params = attrs.evolve(params, wide_norm=wide)
    caches = (declare(LayerKV, SIZES, torch.float32),)

    def forward(p: Any, caches: Any, batch: Any) -> Any:
        x = einsum("n, d -> n d", batch.tokens, p.norm)
        return body(p, x, caches[0], batch), caches

    traced = trace(forward, params, caches, declared_batch())
    layout = {"mesh": "tp=2", **layout}
    return build(
        traced,
        Layout(**layout),
        name="bad",
        ops="tokenspeed_core.ops",
        params=params,
        caches=caches,
        constants={},
    )


def forgets_tp_on_bias(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    return einsum("n d, d f -> n f", x, p.up) + p.whole_bias


def shards_a_norm_weight(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    return rms_norm(x, p.sharded_norm, 1e-5)


def adds_unrelated_shards(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    @spmd
    def rows(x: Placed[Tensor, "n@tp f"]) -> Placed[Tensor, "n@tp f"]:
        return x

    y = einsum("n d, d f -> n f", x, p.up)
    return y + rows(einsum("n d, d f -> n f", x, p.whole_up))


def swaps_labels(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    return einsum("n e, d e -> n d", x, p.square)


def uses_an_unknown_function(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    return torch.softmax(x, -1)


def uses_an_unknown_method(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    return x.transpose(0, 1)


def indexes(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    return x[0]


def branches_on_a_value(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    return x if x else x + x


def makes_a_constant(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    return rms_norm(x, torch.ones(8), 1e-5)


def writes_a_cache_twice(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    q = einsum("n d, d k g h -> n k g h", x, p.wq)
    k = einsum("n d, d k h -> n k h", x, p.wk)
    paged_attention(q, k, k, kv, batch, 1.0)
    o, _ = paged_attention(q, k, k, kv, batch, 1.0)
    return o


def annotates_a_varying_value(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    @spmd
    def inner(x: Placed[Tensor, "n d ?tp"]) -> Any:
        return x

    return inner(x)


def annotates_other_dims(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    @spmd
    def inner(x: Placed[Tensor, "n f"]) -> Any:
        return x

    return inner(x)


def mixes_dims(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    return rms_norm(einsum("n d, d f -> n f", x, p.up), p.norm, 1e-5)


def mixes_sizes(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    return x + p.wide_norm


def stores_a_partial(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    return rms_norm(x, p.owed, 1e-5)


def reads_from_outside_a_layer(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    return scan_once(p, x, lambda own, carry, kv: (x + carry, kv))


def changes_the_carry(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    return scan_once(p, x, lambda own, carry, kv: (einsum("n d, d e -> n e", carry, own.w), kv))


CORPUS: list[tuple[Body, type[ShardingError], tuple[str, ...]]] = [
    (forgets_tp_on_bias, PlacementError, ("whole_bias", "'f@tp'", "wrong part")),
    (shards_a_norm_weight, PlacementError, ("sharded_norm", "'d'", "needs whole")),
    (adds_unrelated_shards, PlacementError, ("unrelated shards", "place(")),
    (swaps_labels, TraceError, ("'n d'", "other meaning")),
    (uses_an_unknown_function, TraceError, ("softmax", "register_rule")),
    (uses_an_unknown_method, TraceError, ("'transpose'", "register_rule")),
    (indexes, TraceError, ("indexing", "register_rule")),
    (branches_on_a_value, TraceError, ("host reads", "hang")),
    (makes_a_constant, TraceError, ("concrete Tensor", "params")),
    (writes_a_cache_twice, TraceError, ("donated at test_errors.py", "overwritten")),
    (annotates_other_dims, TraceError, ("'n d'", "'n f'")),
    (annotates_a_varying_value, PlacementError, ("Varying over tp", "'n d'")),
    (mixes_dims, TraceError, ("'d'", "'f'", "other meaning")),
    (mixes_sizes, TraceError, ("16", "8")),
    (stores_a_partial, PlacementError, ("owed", "Partial")),
    (changes_the_carry, TraceError, ("hands on", "n e")),
    (reads_from_outside_a_layer, TraceError, ("around this layer", "scan")),
]


@module
class Layer:
    w: Placed[Tensor, "d e"]


def scan_once(p: Any, x: Any, layer: Callable[..., Any]) -> Any:
    """Run a scan over two equal layers beside the weights `p`."""
    from tokenspeed_core.sharding.trace import Stack

    declared = (declare(Layer, SIZES, torch.float32),) * 2
    caches = (declare(LayerKV, SIZES, torch.float32),) * 2
    graph = x.graph
    y, _ = scan(
        layer,
        Stack(graph, "layers", "param", declared),
        x,
        Stack(graph, "caches", "cache", caches),
    )  # type: ignore[arg-type]
    return y


@pytest.mark.parametrize(
    ("body", "kind", "named"), CORPUS, ids=lambda item: getattr(item, "__name__", "")
)
def test_a_bad_program_is_refused(
    body: Body, kind: type[ShardingError], named: tuple[str, ...]
) -> None:
    with pytest.raises(kind) as raised:
        compiled(body, present=("owed",) if body is stores_a_partial else ())
    text = str(raised.value)
    assert re.match(r"test_errors\.py:\d+: ", text), text
    for fragment in named:
        assert fragment in text, text


@pytest.mark.parametrize("body", [forgets_tp_on_bias, shards_a_norm_weight])
def test_an_offered_annotation_type_checks(body: Body) -> None:
    """Apply the first fix, `annotate NAME as 'SPEC'`, through the layout, and compile again."""
    with pytest.raises(PlacementError) as raised:
        compiled(body)
    found = re.search(r"fix \d: annotate (\w+) as '([^']*)'", str(raised.value))
    assert found
    dim, _, axis = found[2].partition("@")
    assert compiled(body, place={dim: axis}).source


@pytest.mark.parametrize("pinned", [0, 1])
def test_an_offered_pin_type_checks(pinned: int) -> None:
    def body(p: Any, x: Any, kv: Any, batch: Any) -> Any:
        @spmd
        def rows(x: Placed[Tensor, "n@tp f"]) -> Placed[Tensor, "n@tp f"]:
            return x

        @spmd
        def whole(x: Placed[Tensor, "n f"]) -> Placed[Tensor, "n f"]:
            return x

        sides = [
            einsum("n d, d f -> n f", x, p.up),
            rows(einsum("n d, d f -> n f", x, p.whole_up)),
        ]
        sides[pinned] = whole(sides[pinned])
        return sides[0] + sides[1]

    with pytest.raises(PlacementError) as raised:
        compiled(adds_unrelated_shards)
    assert len(re.findall(r"fix \d: move \w+ first: place", str(raised.value))) == 2
    assert compiled(body).source


def over_budget(p: Any, x: Any, kv: Any, batch: Any) -> Any:
    @spmd(budget="all_reduce<=1")
    def wasteful(x: Placed[Tensor, "n d"]) -> Placed[Tensor, "n d"]:
        y = rms_norm(
            einsum("n f, f d -> n d", einsum("n d, d f -> n f", x, p.up), p.down), p.norm, 1e-5
        )
        return einsum("n f, f d -> n d", einsum("n d, d f -> n f", y, p.up), p.down)

    return wasteful(x)


def test_a_function_over_budget_is_refused_with_each_collective() -> None:
    with pytest.raises(
        BudgetError, match=r"wasteful needs 2 all-reduces, its budget is 1"
    ) as raised:
        compiled(over_budget)
    assert str(raised.value).count("all_reduce of") == 2
    assert compiled(over_budget, mesh="tp=1").source


def test_a_replicated_weight_gathers_rather_than_fails() -> None:
    plan = compiled(
        lambda p, x, kv, batch: einsum(
            "n f, f d -> n d", einsum("n d, d f -> n f", x, p.up), p.whole_down
        )
    )
    assert "c.all_gather(" in plan.source
    assert "all_reduce" not in plan.source
