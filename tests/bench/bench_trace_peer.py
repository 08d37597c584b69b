# SPDX-License-Identifier: MIT
"""Llama 70B of 60 layers under JAX's explicit sharding on eight ranks, for bench_trace.py.

Runs in an interpreter that has jax, which needs nothing of ours: prints the median milliseconds to
trace and lower a forward pass, with layers unrolled and as a scan.  Cold each time.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

LAYERS, D, K, G, H, F, TOKENS = 60, 8192, 8, 8, 128, 28672, 64
REPETITIONS = 7
WHOLE = PartitionSpec()
PARAMS = {
    "attn_norm": ((D,), WHOLE),
    "wq": ((D, K, G, H), PartitionSpec(None, "tp")),
    "wk": ((D, K, H), PartitionSpec(None, "tp")),
    "wv": ((D, K, H), PartitionSpec(None, "tp")),
    "wo": ((K, G, H, D), PartitionSpec("tp")),
    "mlp_norm": ((D,), WHOLE),
    "w_gate": ((D, F), PartitionSpec(None, "tp")),
    "w_up": ((D, F), PartitionSpec(None, "tp")),
    "w_down": ((F, D), PartitionSpec("tp")),
}


def norm(x: Any, w: Any) -> Any:
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5)).astype(x.dtype) * w


def layer(x: Any, p: Any) -> Any:
    h = norm(x, p["attn_norm"])
    q = jnp.einsum("nd,dkgh->nkgh", h, p["wq"])
    k = jnp.einsum("nd,dkh->nkh", h, p["wk"])
    v = jnp.einsum("nd,dkh->nkh", h, p["wv"])
    scores = jnp.einsum("nkgh,mkh->kgnm", q, k).astype(jnp.float32)
    o = jnp.einsum("kgnm,mkh->nkgh", jax.nn.softmax(scores, -1).astype(x.dtype), v)
    x = x + jnp.einsum("nkgh,kghd->nd", o, p["wo"], out_sharding=WHOLE)
    h = norm(x, p["mlp_norm"])
    gate = jax.nn.silu(jnp.einsum("nd,df->nf", h, p["w_gate"]))
    up = jnp.einsum("nd,df->nf", h, p["w_up"])
    return x + jnp.einsum("nf,fd->nd", gate * up, p["w_down"], out_sharding=WHOLE)


def unrolled(x: Any, layers: Any) -> Any:
    for p in layers:
        x = layer(x, p)
    return x


def scanned(x: Any, stacked: Any) -> Any:
    return jax.lax.scan(lambda carry, p: (layer(carry, p), None), x, stacked)[0]


def declared(mesh: Any, shape: tuple[int, ...], spec: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))


def median_ms(function: Callable[..., Any], *args: Any) -> float:
    times = []
    for _ in range(REPETITIONS):
        jax.clear_caches()
        start = time.perf_counter()
        jax.jit(lambda *given: function(*given)).trace(*args).lower()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def main() -> None:
    mesh = jax.make_mesh((8,), ("tp",), axis_types=(AxisType.Explicit,))
    jax.set_mesh(mesh)
    x = declared(mesh, (TOKENS, D), WHOLE)
    one = {name: declared(mesh, *given) for name, given in PARAMS.items()}
    stacked = {
        name: declared(mesh, (LAYERS, *shape), PartitionSpec(None, *spec))
        for name, (shape, spec) in PARAMS.items()
    }
    found = {
        "unrolled": median_ms(unrolled, x, [one] * LAYERS),
        "scan": median_ms(scanned, x, stacked),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
