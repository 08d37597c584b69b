# SPDX-License-Identifier: MIT
"""Launches of Triton kernels, taken down instead of run, to compile them for devices not here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import attrs
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel, compile
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime.jit import JITFunction

from tokenspeed_core.kernels.float8 import FLOAT8, Float8Matrix
from tokenspeed_core.kernels.triton import (
    all_reduce,
    attention,
    columns,
    delta_net,
    draw_parts,
    draw_rows,
    expert_order,
    experts,
    float8,
    latent_attention,
    linear,
    norm,
    pointwise,
    router,
    sampling,
    word_sum,
)
from tokenspeed_core.kernels.triton.compilation import source_of
from tokenspeed_core.kernels.triton.device import Device

NAMES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32",
    torch.int64: "*i64", torch.float64: "*fp64", torch.float8_e4m3fn: "*fp8e4nv",
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
        source = source_of(self.function, self.signature, self.constants, self.divisible)
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
            if not parameter.do_not_specialize_on_alignment:
                divisible[place,] = [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            element = NAMES[value.base.dtype].removeprefix("*")
            kind = f"tensordesc<{element}{value.block_shape},{value.layout!r}>"
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
    launches: dict[str, Launch] = {}

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        made = launch(self, args, options)
        launches.setdefault(made.key, made)

    found: list[Launch] = []
    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        for module in (
            all_reduce,
            attention,
            columns,
            delta_net,
            experts,
            expert_order,
            float8,
            latent_attention,
            linear,
            norm,
            pointwise,
            router,
            draw_parts,
            draw_rows,
            word_sum,
        ):
            patch.setattr(module, "device_of", lambda x: device)
        yield found
    found.extend(launches.values())


def every_call(variants: bool, narrow: bool) -> list[Callable[[], object]]:
    """Return a call for each kernel.

    With `variants` in float32, with windows and sinks too; `narrow`: the device has float8.
    """
    calls = [*_few_rows(torch.bfloat16), *_attention(torch.bfloat16, 128, False)]
    slots = torch.empty(3, dtype=torch.int32)
    table = torch.empty(9, 2560, dtype=torch.int32)
    calls += [partial(columns.decode_columns, slots, slots, slots, table, 16)]
    calls += [*_latent_attention(torch.bfloat16), *_delta_net(torch.bfloat16)]
    x, four = torch.empty(4, 3000, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.int64)
    exchange = all_reduce.Exchange.of(four, 1)
    calls += [partial(all_reduce.all_reduce, x, exchange, twice) for twice in (False, True)]
    calls.append(partial(word_sum.sum_by_words, x, exchange))
    calls.append(partial(all_reduce.rank_sum, x))
    calls += _draws()
    if narrow:
        calls += [*_attention(torch.bfloat16, 128, False, FLOAT8), *_float8()]
    if variants:
        calls += [*_few_rows(torch.float32), *_attention(torch.bfloat16, 64, True)]
    return calls


def _few_rows(dtype: torch.dtype) -> list[Callable[[], object]]:
    calls: list[Callable[[], object]] = []
    for n, o, i in ((1, 4096, 2048), (8, 4096, 2048), (8, 48, 100)):
        x, w = torch.empty(n, i, dtype=dtype), torch.empty(o, i, dtype=dtype)
        gain, residual = torch.empty(i, dtype=dtype), torch.empty(n, o, dtype=dtype)
        calls += [
            partial(linear.norm_linear, x, gain, w, 1e-6),
            partial(linear.linear_add, x, w, residual),
            partial(linear.norm_gate_up, x, gain, w, 1e-6),
        ]
    x, w = torch.empty(3, 1024, dtype=dtype), torch.empty(1024, dtype=dtype)
    angles = torch.empty(3, 64)
    w_gate, w_down = torch.empty(8, 96, 1024, dtype=dtype), torch.empty(8, 1024, 96, dtype=dtype)
    for n in (1, 30, 800):
        y, ids = torch.empty(n, 1024, dtype=dtype), torch.zeros(n, 2, dtype=torch.int32)
        calls.append(
            partial(experts.experts, y, ids, y[:, :2].contiguous(), w_gate, w_gate, w_down)
        )
    w_router, one = torch.empty(8, 1024, dtype=dtype), torch.empty(1, 1024, dtype=dtype)
    return [
        *calls,
        partial(experts.norm_moe_add, one, w, w_router, w_gate, w_gate, w_down, 2, True, 1e-6),
        partial(router.softmax_router, x, 8, True),
        partial(norm.rms_norm, x, w, 1e-6),
        partial(norm.add_rms_norm, x, x, w, 1e-6),
        partial(pointwise.silu_mul, x),
        partial(pointwise.rope, x.view(3, 16, 64), angles, angles),
        partial(pointwise.rope_pairs, x.view(3, 16, 64), angles, angles),
        partial(pointwise.embedding, torch.zeros(3, dtype=torch.int32), x),
    ]


def _attention(
    dtype: torch.dtype, h: int, plain: bool, kept: torch.dtype | None = None
) -> list[Callable[[], object]]:
    calls: list[Callable[[], object]] = []
    for requests, queries, sharing in (
        (1, 1, False),
        (32, 1, True),
        (1, 200, False),
        (1, 300, False),
    ):
        batch = SimpleNamespace(
            cache_slots=torch.zeros(requests * queries, dtype=torch.int64),
            query_starts=torch.arange(requests + 1, dtype=torch.int32) * queries,
            context_lens=torch.full((requests,), 40000, dtype=torch.int32),
            block_tables=torch.zeros(requests, 2500, dtype=torch.int32),
            num_rows=requests,
            num_decode_rows=requests if queries == 1 else 0,
            max_query=queries,
            max_context=40000,
            shared_parts=torch.zeros(33, 5, dtype=torch.int32) if sharing else None,
            shared_rows=torch.zeros(requests, 3, dtype=torch.int32) if sharing else None,
            most_parts=33,
        )
        n = requests * queries
        kv = torch.empty(1, 2, 16, h, dtype=kept or dtype)
        qkv, gain = torch.empty(n, 12 * h, dtype=dtype), torch.empty(h, dtype=dtype)
        if plain:
            q, k = qkv[:, : 8 * h].view(-1, 2, 4, h), qkv[:, 8 * h : 10 * h].view(-1, 2, h)
            sinks = torch.empty(2, 4, dtype=dtype)
            call = partial(attention.paged_attention, q, k, k, kv, kv, batch, 0.1, 128, sinks)
        else:
            angles = torch.empty(n, h)
            call = partial(
                attention.rope_attention, qkv, gain, gain, angles, angles, kv, kv, batch, 0.1, 0,
                1e-6,
            )  # fmt: skip
        calls.append(call)
    return calls


def _draws() -> list[Callable[[], object]]:
    """Return draws of few rows and of many, of all tokens and of a part."""
    calls: list[Callable[[], object]] = []
    for count in (2, 40):
        share, whole = torch.empty(count), torch.zeros(count, dtype=torch.int32)
        rows = (share, whole, share, whole.long(), whole)
        logits = torch.empty(count, 151936)
        calls += [partial(sampling.draw_tokens, logits, *rows, kept) for kept in (False, True)]
    return calls


def _float8() -> list[Callable[[], object]]:
    """Return products of few rows and a copy, with scales of outputs and of blocks."""
    calls: list[Callable[[], object]] = []
    for block in ((1, 2048), (128, 128)):
        w = Float8Matrix(
            torch.empty(512, 2048, dtype=FLOAT8),
            torch.empty(512 // block[0], 2048 // block[1]),
            block,
        )
        gain = torch.empty(2048, dtype=torch.bfloat16)
        for n in (1, 16, 40, 300):
            x = torch.empty(n, 2048, dtype=torch.bfloat16)
            calls += [
                partial(linear.float8_linear, x, w),
                partial(linear.norm_linear, x, gain, w, 1e-6),
                partial(linear.norm_gate_up, x, gain, w, 1e-6),
                partial(linear.linear_add, x, w, torch.empty(n, 512, dtype=torch.bfloat16)),
            ]
            if n > linear.MAX_ROWS:
                calls[-4:] = [partial(float8.product, x, w)]
        calls.append(partial(float8.dequantised, w, torch.bfloat16))
        calls.append(partial(float8.rounded, x, min(block[1], 2048)))
    return calls


def _latent_attention(dtype: torch.dtype) -> list[Callable[[], object]]:
    """Return decode and prefill with the sizes of DeepSeek-V2-Lite."""
    calls: list[Callable[[], object]] = []
    for queries in (1, 300):
        batch = SimpleNamespace(
            cache_slots=torch.arange(queries),
            query_starts=torch.tensor([0, queries], dtype=torch.int32),
            context_lens=torch.tensor([4096], dtype=torch.int32),
            block_tables=torch.zeros(1, 256, dtype=torch.int32),
            max_context=4096,
        )
        shapes = (queries, 16, 128), (queries, 16, 64), (queries, 512), (queries, 64)
        weights = torch.empty(16, 128, 512, dtype=dtype)
        new = [torch.empty(*shape, dtype=dtype) for shape in shapes]
        cache = torch.empty(20, 16, 576, dtype=dtype)
        calls.append(
            partial(latent_attention.latent_attention, *new, weights, weights, cache, batch, 0.1)
        )
    return calls


def _delta_net(dtype: torch.dtype) -> list[Callable[[], object]]:
    """Return decode with the sizes of Qwen3-Next."""
    ints = torch.zeros(3, dtype=torch.int32)
    batch = SimpleNamespace(
        query_starts=ints, context_lens=ints[:2], state_blocks=torch.zeros(2, dtype=torch.int64)
    )
    q, v = torch.empty(2, 16, 128), torch.empty(2, 16, 2, 128, dtype=dtype)
    rates, states = torch.empty(2, 16, 2), torch.empty(3, 16, 2, 128, 128)
    taps, kept = torch.empty(16, 2, 128, 4, dtype=dtype), torch.empty(3, 16, 2, 128, 3, dtype=dtype)
    return [
        partial(delta_net.gated_delta_rule, q, q, v, rates, rates, states, batch, 0.1),
        partial(delta_net.causal_conv, v, taps, kept, batch),
    ]
