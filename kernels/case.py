# SPDX-License-Identifier: MIT
"""Calls of kernels on random data, to check and time them by."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from .float8 import Float8Matrix
from .registry import Kernel, candidates, choose

# Relative errors of a result of so many terms, in the norm.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@attrs.frozen(eq=False)
class Columns:
    """A batch of one request, as attention reads it; see `ops/batch.py`."""

    cache_slots: Tensor
    query_starts: Tensor
    context_lens: Tensor
    block_tables: Tensor
    num_rows: int
    num_decode_rows: int
    max_query: int
    max_context: int
    shared_parts: Tensor | None = None
    shared_rows: Tensor | None = None
    most_parts: int = 0


@attrs.frozen(eq=False)
class Case:
    """One call of an op: what it is made of, its arguments, the bytes that it has to move."""

    op: str
    sizes: str
    args: tuple[Any, ...]
    bytes: int

    def kernels(self) -> list[Kernel]:
        """Return the kernels that are legal for these arguments, the preferred one first."""
        x = next(arg for arg in self.args if isinstance(arg, Tensor) and arg.is_floating_point())
        legal = [each for each in candidates(self.op) if each.supports(x.device.type, x.dtype)]
        return sorted(legal, key=lambda kernel: -kernel.preference)

    def error(self, kernel: Kernel) -> float:
        """Return the error of a kernel relative to the torch reference in float64."""
        reference = choose(self.op, "cpu", torch.float64, "torch").run
        want = _first(reference(*(_wide(arg) for arg in self.args)))
        got = _first(kernel.run(*(_copied(arg) for arg in self.args)))
        return float((got.double() - want).norm() / want.norm())


def cases(device: str, dtype: torch.dtype, tokens: int, width: int) -> Iterator[Case]:
    """Yield a case of each op of a decoder layer: so many tokens, a model of so wide rows."""
    place = torch.device(device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=place).to(dtype)

    def case(op: str, sizes: str, *args: Any, moved: int | None = None) -> Case:
        held = [arg for arg in args if isinstance(arg, Tensor)]
        return Case(op, sizes, args, sum(map(_bytes, held)) if moved is None else moved)

    n, d, f, h = tokens, width, 3 * width, 128
    x, residual, gain = normal(n, d), normal(n, d), normal(d)
    wide, gated = normal(f, d) * d**-0.5, normal(2 * f, d) * d**-0.5
    rows = f"n={n} d={d}"
    yield case("rms_norm", rows, x, gain, 1e-6)
    yield case("add_rms_norm", rows, x, residual, gain, 1e-6)
    yield case("linear", f"{rows} o={f}", x, wide)
    yield case("norm_linear", f"{rows} o={f}", x, gain, wide, 1e-6)
    narrow = Float8Matrix.of(wide, (1, d))
    yield case("float8_linear", f"{rows} o={f}", x, narrow, moved=f * d + 2 * _bytes(x))
    yield case("rank_sum", f"ranks=4 {rows}", normal(4, n, d))
    yield case("linear_add", f"n={n} i={f} o={d}", normal(n, f), normal(d, f) * f**-0.5, residual)
    yield case("norm_gate_up", f"{rows} f={f}", x, gain, gated, 1e-6)
    yield case("silu_mul", f"n={n} f={f}", normal(n, 2 * f))
    heads, angles = normal(n, 8, h), torch.rand(n, h, device=place)
    yield case("rope", f"n={n} heads=8 h={h}", heads, angles.cos(), angles.sin())
    for context, queries in ((1024, 1), (1024, min(64, n + 1))):
        batch = _columns(place, context, queries)
        kv = [normal(context // 16 + 2, 8, 16, h) for _ in range(2)]
        new = normal(queries, 8, 4, h), normal(queries, 8, h), normal(queries, 8, h)
        yield case(
            "paged_attention", f"queries={queries} context={context}", *new, *kv, batch, h**-0.5,
            moved=2 * context * 8 * h * dtype.itemsize,
        )  # fmt: skip
    e, active, j = 16, 4, d // 4
    ids = torch.stack([torch.randperm(e)[:active] for _ in range(n)]).int().to(place)
    shares = torch.rand(n, active, device=place).to(dtype)
    up = [normal(e, j, d) * d**-0.5 for _ in range(2)]
    down = normal(e, d, j) * j**-0.5
    used = len(set(ids.flatten().tolist()))
    yield case(
        "experts", f"{rows} j={j} used={used}", x, ids, shares, *up, down,
        moved=used * 3 * d * j * dtype.itemsize,
    )  # fmt: skip


def _columns(place: torch.device, context: int, queries: int) -> Columns:
    count = -(-context // 16)
    table = torch.randperm(count) + 1
    at = torch.arange(context - queries, context)
    return Columns(
        cache_slots=(table[at // 16] * 16 + at % 16).to(place),
        query_starts=torch.tensor([0, queries], dtype=torch.int32, device=place),
        context_lens=torch.tensor([context], dtype=torch.int32, device=place),
        block_tables=table[None].int().to(place),
        num_rows=1,
        num_decode_rows=int(queries == 1),
        max_query=queries,
        max_context=context,
    )


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _first(result: Any) -> Tensor:
    first: Tensor = result[0] if isinstance(result, tuple) else result
    return first


def _wide(arg: Any) -> Any:
    return arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg


def _copied(arg: Any) -> Any:
    """Return a copy, since attention writes its caches."""
    return arg.clone() if isinstance(arg, Tensor) else arg


def microseconds(run: Callable[[], object], device: str, repeats: int = 20) -> float:
    """Return the median time of a call: on a GPU in a captured graph, without launch overhead."""
    run()
    if device != "cuda":
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            run()
            times.append((time.perf_counter() - begin) * 1e6)
        return statistics.median(times)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeats):
            run()
    times = []
    for _ in range(5):
        begun = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begun.record()
        graph.replay()
        ended.record()
        torch.cuda.synchronize()
        times.append(begun.elapsed_time(ended) * 1e3 / repeats)
    return statistics.median(times)
