# SPDX-License-Identifier: MIT
"""Launches of Triton kernels, taken down instead of run, to compile them for devices not here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, compile
from triton.runtime.jit import JITFunction

from tokenspeed_core.kernels.triton.device import Device

NAMES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32",
    torch.int64: "*i64", torch.float8_e4m3fn: "*fp8e4nv",
}  # fmt: skip


@attrs.frozen(eq=False)
class Launch:
    """One kernel with the types of its arguments, its constants and its options."""

    function: JITFunction
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    divisible: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    @property
    def key(self) -> str:
        return repr((self.function.__name__, self.signature, self.constants, self.options))

    def compile(self, target: GPUTarget) -> CompiledKernel:
        source = ASTSource(self.function, self.signature, self.constants, self.divisible)
        return compile(source, target=target, options=self.options)


def launch(function: JITFunction, args: tuple[Any, ...], options: dict[str, Any]) -> Launch:
    """Return what a call of `function` with these arguments would compile."""
    signature, constants, divisible = {}, {}, {}
    for place, (parameter, value) in enumerate(zip(function.params, args, strict=True)):
        kind = "constexpr"
        if parameter.is_constexpr:
            constants[place,] = value
        elif isinstance(value, torch.Tensor):
            kind = NAMES[value.dtype]
            divisible[place,] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            kind = "fp32"
        else:
            kind = "i32"
            if not parameter.do_not_specialize and value % 16 == 0:
                divisible[place,] = [["tt.divisibility", 16]]
        signature[parameter.name] = kind
    return Launch(function, signature, constants, divisible, options)


@contextmanager
def recorded(monkeypatch: Any, device: Device) -> Iterator[list[Launch]]:
    """Take down every launch, as made for `device`, of what is called within."""
    from tokenspeed_core.kernels.triton import attention, linear, norm, pointwise

    launches: dict[str, Launch] = {}

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        made = launch(self, args, options)
        launches.setdefault(made.key, made)

    found: list[Launch] = []
    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        for module in (attention, linear, norm, pointwise):
            patch.setattr(module, "device_of", lambda x: device)
        yield found
    found.extend(launches.values())


def every_call() -> list[Callable[[], object]]:
    """Return one call for each variant of each kernel that may differ in what it compiles to."""
    from types import SimpleNamespace

    from tokenspeed_core.kernels.triton import attention, linear, norm, pointwise

    half, wide = torch.bfloat16, torch.float32
    calls: list[Callable[[], object]] = []
    for dtype in (half, wide):
        for n in (1, 8):
            for o, i in ((4096, 1024), (48, 100)):
                x, w = torch.empty(n, i, dtype=dtype), torch.empty(o, i, dtype=dtype)
                gain, residual = torch.empty(i, dtype=dtype), torch.empty(n, o, dtype=dtype)
                calls += [
                    lambda x=x, w=w, g=gain: linear.norm_linear(x, g, w, 1e-6),
                    lambda x=x, w=w, r=residual: linear.linear_add(x, w, r),
                    lambda x=x, w=w, g=gain: linear.norm_gate_up(x, g, w, 1e-6),
                ]
        x, w = torch.empty(3, 1024, dtype=dtype), torch.empty(1024, dtype=dtype)
        table = torch.empty(50, 1024, dtype=dtype)
        angles = torch.empty(3, 64)
        calls += [
            lambda x=x, w=w: norm.rms_norm(x, w, 1e-6),
            lambda x=x, w=w: norm.add_rms_norm(x, x, w, 1e-6),
            lambda x=x: pointwise.silu_mul(x),
            lambda x=x, a=angles: pointwise.rope(x.view(3, 16, 64), a, a),
            lambda t=table: pointwise.embedding(torch.zeros(3, dtype=torch.int32), t, 0),
        ]
        for h, cache_dtype in ((128, dtype), (64, dtype)):
            for queries in (1, 40):
                batch = SimpleNamespace(
                    cache_slots=torch.zeros(queries, dtype=torch.int64),
                    query_starts=torch.tensor([0, queries], dtype=torch.int32),
                    context_lens=torch.tensor([4000], dtype=torch.int32),
                    block_tables=torch.zeros(1, 256, dtype=torch.int32),
                    num_decode_rows=int(queries == 1), max_query=queries, max_context=4000,
                )  # fmt: skip
                cache = torch.empty(1, 2, 16, h, dtype=cache_dtype)
                qkv, gain = torch.empty(queries, 12 * h, dtype=dtype), torch.empty(h, dtype=dtype)
                cos = torch.empty(queries, h)
                calls.append(
                    lambda q=qkv, g=gain, c=cos, kv=cache, b=batch: attention.rope_attention(
                        q, g, g, c, c, kv, kv, b, 0.1, 0, 1e-6
                    )
                )
                if h == 64:
                    q, k = qkv[:, : 8 * h].view(-1, 2, 4, h), qkv[:, 8 * h : 10 * h].view(-1, 2, h)
                    sinks = torch.empty(2, 4, dtype=dtype)
                    calls.append(
                        lambda q=q, k=k, s=sinks, kv=cache, b=batch: attention.paged_attention(
                            q, k, k, kv, kv, b, 0.1, 128, s
                        )
                    )
    return calls
