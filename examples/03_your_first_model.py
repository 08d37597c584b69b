# SPDX-License-Identifier: MIT
"""A model from nothing: frozen parameters, pure functions, placements in the types.

It predicts the next token from this one alone.  The same functions run eagerly, and compiled for
four simulated ranks; functorch finds nothing that the trace does not tell.  `tokenspeed check` does
all of this for a file that names a family: models/WRITE_YOUR_OWN.md goes on to a served model.
"""

import torch
from torch import Tensor

from tokenspeed_core.ops import Batch, declared_batch, einsum, embedding, rms_norm, silu_mul
from tokenspeed_core.second_opinion import second_opinion
from tokenspeed_core.sharding import Layout, Placed, build, declare, module, spmd, trace
from tokenspeed_core.sharding.simulate import Simulation
from tokenspeed_core.sharding.tree import leaves, map_leaves

Hidden = Placed[Tensor, "n d"]  # n tokens, d model, f mlp, v vocabulary
Logits = Placed[Tensor, "n v"]


@module
class Bigram:
    """All parameters; a dim is sharded over the mesh axis after its `@`."""

    embed: Placed[Tensor, "v@tp d"]
    norm: Placed[Tensor, "d"]
    w_gate: Placed[Tensor, "d f@tp"]
    w_up: Placed[Tensor, "d f@tp"]
    w_down: Placed[Tensor, "f@tp d"]


@spmd(budget="all_reduce<=1")
def mlp(p: Bigram, x: Hidden) -> Hidden:
    gate = einsum("n d, d f -> n f", x, p.w_gate)
    up = einsum("n d, d f -> n f", x, p.w_up)
    return einsum("n f, f d -> n d", silu_mul(gate, up), p.w_down)


@spmd
def logits(p: Bigram, x: Hidden) -> Logits:
    return einsum("n d, v d -> n v", rms_norm(x, p.norm, 1e-5), p.embed)


def forward(p: Bigram, caches: tuple[()], batch: Batch) -> tuple[Tensor, tuple[()]]:
    x = embedding(batch.tokens, p.embed)
    return logits(p, x + mlp(p, rms_norm(x, p.norm, 1e-5))), caches


def main() -> None:
    declared = declare(Bigram, {"v": 64, "d": 16, "f": 32}, torch.float64)
    values = {path: torch.randn(leaf.sizes).double() for path, leaf in leaves(declared)}
    tokens = torch.arange(8, dtype=torch.int32)
    columns = "positions cache_slots query_starts context_lens block_tables logit_rows state_blocks"
    counts = "num_rows num_decode_rows max_query max_context"
    unused = dict.fromkeys(columns.split(), tokens) | dict.fromkeys(counts.split(), 8)
    batch = Batch(tokens=tokens, **unused)
    params = map_leaves(lambda path, _: values[path], declared)
    eager, _ = forward(params, (), batch)
    plan = build(trace(forward, declared, (), declared_batch()), Layout("tp=4"), name="bigram",
                 ops="tokenspeed_core.ops", params=declared, caches=(), constants={})  # fmt: skip
    print(plan.source)
    simulated = Simulation(plan, values, blocks=1).step(batch)
    print(f"four simulated ranks differ from eager by {(simulated - eager).abs().max():.1e}")
    for finding in second_opinion(forward, (declared, (), declared_batch()), (params, (), batch)):
        print(finding)


if __name__ == "__main__":
    main()
