# SPDX-License-Identifier: MIT
"""Llama 70B of 60 layers under torch's make_fx, for bench_trace.py.

Prints the median milliseconds to trace a forward pass on fake tensors, of whole sizes and with no
placement at all: with norms and attention as torch's fused functions, and in plain ones.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

LAYERS, D, K, G, H, F, TOKENS = 60, 8192, 8, 8, 128, 28672, 64
REPETITIONS = 5
SHAPES = {
    "attn_norm": (D,),
    "wq": (K * G * H, D),
    "wk": (K * H, D),
    "wv": (K * H, D),
    "wo": (D, K * G * H),
    "mlp_norm": (D,),
    "w_gate": (F, D),
    "w_up": (F, D),
    "w_down": (D, F),
}


def norm(x: Tensor, w: Tensor, fused: bool) -> Tensor:
    if fused:
        return functional.rms_norm(x, (D,), w, 1e-5)
    y = x.float()
    return (y * torch.rsqrt((y * y).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * w


def attend(q: Tensor, k: Tensor, v: Tensor, fused: bool) -> Tensor:
    if fused:
        return functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    k, v = (x.repeat_interleave(G, 0) for x in (k, v))
    scores = torch.einsum("hnd,hmd->hnm", q, k).float()
    return torch.einsum("hnm,hmd->hnd", scores.softmax(-1).to(v.dtype), v)


def layer(x: Tensor, p: dict[str, Tensor], fused: bool) -> Tensor:
    y = norm(x, p["attn_norm"], fused)
    q = functional.linear(y, p["wq"]).view(TOKENS, K * G, H).transpose(0, 1)
    k, v = (functional.linear(y, p[w]).view(TOKENS, K, H).transpose(0, 1) for w in ("wk", "wv"))
    o = attend(q, k, v, fused).transpose(0, 1).reshape(TOKENS, K * G * H)
    x = x + functional.linear(o, p["wo"])
    y = norm(x, p["mlp_norm"], fused)
    hidden = functional.silu(functional.linear(y, p["w_gate"])) * functional.linear(y, p["w_up"])
    return x + functional.linear(hidden, p["w_down"])


def median_ms(function: Callable[..., Tensor]) -> float:
    times = []
    for _ in range(REPETITIONS):
        with FakeTensorMode():
            one = {name: torch.empty(s, dtype=torch.bfloat16) for name, s in SHAPES.items()}
            x = torch.empty(TOKENS, D, dtype=torch.bfloat16)
            start = time.perf_counter()
            make_fx(functionalize(function))(x, [one] * LAYERS)
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def forward(fused: bool) -> Callable[..., Tensor]:
    def run(x: Tensor, layers: list[dict[str, Tensor]]) -> Tensor:
        for p in layers:
            x = layer(x, p, fused)
        return x

    return run


def main() -> None:
    with torch.no_grad():
        print(json.dumps({"fused": median_ms(forward(True)), "plain": median_ms(forward(False))}))


if __name__ == "__main__":
    main()
