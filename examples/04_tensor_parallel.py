# SPDX-License-Identifier: MIT
"""One model file, four layouts: each is run on a simulated mesh and gives the same logits.

Tensor parallel, sequence parallel and more ranks than key-value heads differ in one line each.
"""

from collections import Counter

import torch

from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.ops import Batch
from tokenspeed_core.sharding import Layout, leaves
from tokenspeed_core.sharding.simulate import Simulation

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}
LAYOUTS = {
    "one rank": Layout("tp=1"),
    "tensor parallel": Layout("tp=2"),
    "sequence parallel": Layout("tp=2", types={"Hidden": "n@tp d"}),
    "8 ranks, 2 kv heads": Layout("tp=(kv=2,rep=4)", place={"k": "kv", "g": "rep"}),
}


def prompt(length: int) -> Batch:
    """Return the batch of one prompt, in block 1 of the cache."""
    tokens = torch.arange(length, dtype=torch.int32)
    return Batch(
        tokens=tokens, positions=tokens, cache_slots=tokens.long() + 16,
        query_starts=torch.tensor([0, length]), context_lens=torch.tensor([length]),
        block_tables=torch.tensor([[1]]), logit_rows=torch.tensor([length - 1]),
        state_blocks=torch.tensor([1]),
        num_rows=1, num_decode_rows=0, max_query=length, max_context=length,
    )  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    family = family_of("LlamaForCausalLM")
    config = family.config(CONFIG)
    declared = family.params(config, torch.float64)
    params = {path: torch.randn(leaf.sizes).double() / 8 for path, leaf in leaves(declared)}
    params.update(family.derived(config))
    first = None
    for name, layout in LAYOUTS.items():
        plan = compile_plan(family, config, layout, dtype=torch.float64, block_size=16)
        simulation = Simulation(plan, params, blocks=2)
        logits = simulation.step(prompt(8))
        first = logits if first is None else first
        issued = Counter(kind for kind, _ in simulation.collectives.log)
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(issued.items())) or "none"
        print(f"{name:<22} off by {(logits - first).abs().max():.0e}; collectives: {listed}")


if __name__ == "__main__":
    main()
