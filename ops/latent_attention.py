# SPDX-License-Identifier: MIT
"""Latent attention (MLA) over a paged cache, and the cache of one layer."""

from torch import Tensor

from ..sharding import Placed, module
from ..sharding.op import OPS, Op, Recorder, register_rule
from ..sharding.rule import rule
from .attention import kept_in
from .batch import Batch
from .cache_kind import CacheKind
from .kernel import kernel


@module
class LayerLatent:
    """Latents of one layer: b blocks, s slots a block, x = c + r: a latent, then a rotated key.

    All heads read every row, so ranks that share the heads each keep all of it.
    """

    rows: Placed[Tensor, "~b s x"]

    keeps = CacheKind.FULL


@register_rule(
    rule(
        "n k h, n k r, n c, n r, k h c, k u c, b s x -> n k u, b s x",
        shard="k",
        depends=((0, 1, 2, 3, 4, 5, 6), (2, 3, 6)),
        rows="n b",
        merges="s",
    ),
    donates=((6, 1),),
    result=lambda args, results: (results[0], LayerLatent(rows=results[1])),
    share="latent_attention_share",
)
def latent_attention(
    qh: Tensor,
    qr: Tensor,
    latent: Tensor,
    kr: Tensor,
    w_key: Tensor,
    w_value: Tensor,
    kv: LayerLatent,
    batch: Batch,
    scale: float,
) -> tuple[Tensor, LayerLatent]:
    """Store `latent[n,c]`, `kr[n,r]` in `kv`, attend causally; return `o[n,k,u]`, `kv`.

    Head k's query is `qh[n,k,h]` beside the rotated `qr[n,k,r]`, its key `w_key[k,h,c] . latent`
    beside the rotated `kr` of all heads, its value `w_value[k,u,c] . latent`; `scale` multiplies
    the logits (DeepSeek-AI 2024, V2).  Whether the weights meet the queries (absorbed: few bytes
    per cached token) or the latents (expanded: few products per pair) is the kernel's choice, from
    host integers that are equal on all ranks.
    """
    run = kernel("latent_attention", qh, *kept_in(kv.rows))
    o: Tensor = run(qh, qr, latent, kr, w_key, w_value, kv.rows, batch, scale)
    return o, kv


def latent_attention_share(
    qh: Tensor,
    qr: Tensor,
    latent: Tensor,
    kr: Tensor,
    w_key: Tensor,
    w_value: Tensor,
    kv: LayerLatent,
    batch: Batch,
    scale: float,
    place: int,
    ways: int,
) -> tuple[Tensor, LayerLatent]:
    """Attend as `latent_attention` does, to the slots that this rank has of every block.

    Those are part `place` of `ways`.  Returns `[n,k,u+1]`, float32 at least: the share of `o`, and
    the log of its softmax weights' sum.
    """
    if isinstance(qh, Recorder):
        args = (qh, qr, latent, kr, w_key, w_value, kv, batch, scale, place, ways)
        found: tuple[Tensor, LayerLatent] = qh.record(_SHARE, args)
        return found
    run = kernel("latent_attention_share", qh)
    o: Tensor = run(qh, qr, latent, kr, w_key, w_value, kv.rows, batch, scale, place, ways)
    return o, kv


# Only compiled plans call it, so its rule is never asked for a placement.
_SHARE = OPS["latent_attention_share"] = Op(
    "latent_attention_share", OPS["latent_attention"].rule, latent_attention_share
)
