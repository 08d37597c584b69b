# SPDX-License-Identifier: MIT
"""Attention over a paged cache, and the cache of one layer."""

from torch import Tensor

from ..sharding import Placed, module
from ..sharding.op import register_rule
from ..sharding.rule import rule
from .batch import Batch
from .kernel import kernel


@module
class LayerKV:
    """Keys and values of one layer: b blocks, k kv heads, s slots a block, h head dim.

    A linear value: an op that writes it takes it and hands it back; the old one is dead.
    """

    k: Placed[Tensor, "~b k@tp s h"]
    v: Placed[Tensor, "~b k@tp s h"]


@register_rule(
    rule(
        "n k g h, n k h, n k h, b k s h, b k s h -> n k g h, b k s h, b k s h",
        shard="k g",
        depends=((0, 1, 2, 3, 4), (1, 3), (2, 4)),
        rows="n b",
    ),
    donates=((3, 1), (4, 2)),
    result=lambda args, results: (results[0], LayerKV(k=results[1], v=results[2])),
)
def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, kv: LayerKV, batch: Batch, scale: float
) -> tuple[Tensor, LayerKV]:
    """Store `k[n,k,h]`, `v[n,k,h]` in `kv`, attend causally with `q[n,k,g,h]`; return `o`, `kv`.

    k kv heads x g query heads each; `scale` multiplies the logits.
    """
    run = kernel("paged_attention", q)
    o: Tensor = run(q, k, v, kv.k, kv.v, batch, scale)
    return o, kv
