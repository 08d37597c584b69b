# SPDX-License-Identifier: MIT
"""Attention over a paged cache, and the cache of one layer."""

from typing import Any, cast

import attrs
from torch import Tensor

from ..kernels.float8 import FLOAT8
from ..sharding import Placed, module
from ..sharding.op import OPS, Op, Recorder, register_rule
from ..sharding.rule import rule
from .batch import Batch
from .cache_kind import CacheKind
from .kernel import kernel


@module
class LayerKV:
    """Keys and values of one layer: b blocks, k kv heads, s slots a block, h head dim.

    A linear value: an op that writes it takes it and hands it back; the old one is dead.
    """

    k: Placed[Tensor, "~b k@tp s h"]
    v: Placed[Tensor, "~b k@tp s h"]

    keeps = CacheKind.FULL


@module
class WindowKV(LayerKV):
    """Keys and values of a layer that reads the last `span` tokens only."""

    span: int

    keeps = CacheKind.WINDOW


def _written(args: tuple[Any, ...], results: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return what attention computed, and the cache among its arguments with the new contents."""
    kv = next(arg for arg in args if isinstance(arg, LayerKV))
    return results[0], attrs.evolve(cast(Any, kv), k=results[1], v=results[2])


def kept_in(cache: Tensor) -> tuple[str, ...]:
    """Return what a kernel must be able to do for such a cache."""
    return ("float8",) if cache.dtype == FLOAT8 else ()


def rows_of(batch: Batch, kv: LayerKV) -> Batch:
    """Return the batch as layers with such a cache see it."""
    return batch.windowed() if kv.keeps is CacheKind.WINDOW else batch


@register_rule(
    rule(
        "n k g h, n k h, n k h, b k s h, b k s h -> n k g h, b k s h, b k s h",
        shard="k g",
        depends=((0, 1, 2, 3, 4), (1, 3), (2, 4)),
        rows="n b",
        merges="s",
    ),
    donates=((3, 1), (4, 2)),
    result=_written,
    share="paged_attention_share",
)
def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, kv: LayerKV, batch: Batch, scale: float, window: int = 0
) -> tuple[Tensor, LayerKV]:
    """Store `k[n,k,h]`, `v[n,k,h]` in `kv`, attend causally with `q[n,k,g,h]`; return `o`, `kv`.

    k kv heads x g query heads each; `scale` multiplies the logits; a query sees the last `window`
    tokens, itself included, or all if it is 0.
    """
    o: Tensor
    batch = rows_of(batch, kv)
    needs = kept_in(kv.k)
    if window:
        run = kernel("paged_attention", q, "window", *needs)
        o = run(q, k, v, kv.k, kv.v, batch, scale, window)
    else:
        o = kernel("paged_attention", q, *needs)(q, k, v, kv.k, kv.v, batch, scale)
    return o, kv


def paged_attention_share(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: LayerKV,
    batch: Batch,
    scale: float,
    *window_place_ways: int,
) -> tuple[Tensor, LayerKV]:
    """Attend as `paged_attention` does, to the slots that this rank has of every block.

    Those are part `place` of `ways`, the last two arguments.  Returns `[n,k,g,h+1]`, float32 at
    least: the share of `o`, and the log of its softmax weights' sum.
    """
    if isinstance(q, Recorder):
        found: tuple[Tensor, LayerKV] = q.record(
            _SHARE, (q, k, v, kv, batch, scale, *window_place_ways)
        )
        return found
    *window, place, ways = window_place_ways
    run = kernel("paged_attention_share", q, *kept_in(kv.k))
    o: Tensor = run(q, k, v, kv.k, kv.v, rows_of(batch, kv), scale, *window or (0,), place, ways)
    return o, kv


# Only compiled plans call it, so its rule is never asked for a placement.
_SHARE = OPS["paged_attention_share"] = Op(
    "paged_attention_share", OPS["paged_attention"].rule, paged_attention_share
)


@register_rule(
    rule(
        "n k g h, n k h, n k h, k g, b k s h, b k s h -> n k g h, b k s h, b k s h",
        shard="k g",
        depends=((0, 1, 2, 3, 4, 5), (1, 4), (2, 5)),
        rows="n b",
        merges="s",
    ),
    donates=((4, 1), (5, 2)),
    result=_written,
    share="sink_attention_share",
)
def sink_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    kv: LayerKV,
    batch: Batch,
    scale: float,
    window: int = 0,
) -> tuple[Tensor, LayerKV]:
    """Attend as `paged_attention` does, `sinks[k,g]` being one more logit without a value."""
    run = kernel("paged_attention", q, "window", "sinks", *kept_in(kv.k))
    o: Tensor = run(q, k, v, kv.k, kv.v, rows_of(batch, kv), scale, window, sinks)
    return o, kv


def sink_attention_share(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    kv: LayerKV,
    batch: Batch,
    scale: float,
    window: int,
    place: int,
    ways: int,
) -> tuple[Tensor, LayerKV]:
    """Attend as `sink_attention` does, to this rank's slots, like `paged_attention_share`.

    The sinks are a term of all keys' softmax, so they are counted by the first share alone.
    """
    if isinstance(q, Recorder):
        found: tuple[Tensor, LayerKV] = q.record(
            _SINK_SHARE, (q, k, v, sinks, kv, batch, scale, window, place, ways)
        )
        return found
    run = kernel("paged_attention_share", q)
    own = sinks if place == 0 else None
    o: Tensor = run(q, k, v, kv.k, kv.v, rows_of(batch, kv), scale, window, place, ways, own)
    return o, kv


_SINK_SHARE = OPS["sink_attention_share"] = Op(
    "sink_attention_share", OPS["sink_attention"].rule, sink_attention_share
)
