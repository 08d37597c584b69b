# SPDX-License-Identifier: MIT
"""What a parallel layout makes of Llama: no GPU, no weights, no processes.

Prints the program that each of eight ranks runs, then every collective with its cost and reason.
Change one word of the layout and run it again.
"""

import torch

from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.sharding import Layout, explain

LLAMA_3_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}


def main() -> None:
    family = family_of("LlamaForCausalLM")
    config = family.config(LLAMA_3_70B)
    layout = Layout("tp=8")  # add types={"Hidden": "n@tp d"} for sequence parallelism
    plan = compile_plan(family, config, layout, dtype=torch.bfloat16, block_size=16)
    print(plan.source)
    print(explain(plan, tokens=64))
    stored = sum(torch.Size(pack.shape).numel() * pack.dtype.itemsize for pack in plan.storage)
    print(f"\na rank keeps {len(plan.storage)} packs, {stored / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
