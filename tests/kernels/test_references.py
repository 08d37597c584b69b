# SPDX-License-Identifier: MIT
"""The torch references against formulas written another way."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed_core import ops  # noqa: F401  (registers every backend)
from tokenspeed_core.kernels.registry import NoKernelError, candidates, choose

OPS = [
    "linear", "rms_norm", "add_rms_norm", "rope", "rope_pairs", "silu_mul", "embedding",
    "paged_attention", "experts", "clamped_experts", "expert_bias", "softmax_router",
    "topk_softmax_router", "sigmoid_router", "squares", "stack_totals", "rms_norm_by_total",
]  # fmt: skip


def reference(op: str):
    return choose(op, "cpu", torch.float64, "torch").run


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_reference_for_every_dtype(op: str) -> None:
    assert "torch" in [kernel.backend for kernel in candidates(op)]
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert choose(op, "cpu", dtype, "torch").backend == "torch"


def test_linear_is_rows_by_columns() -> None:
    x, w = torch.randn(3, 5).double(), torch.randn(4, 5).double()
    torch.testing.assert_close(reference("linear")(x, w), x @ w.T)


def test_rms_norm_element_by_element() -> None:
    x, w = torch.randn(2, 6).double(), torch.randn(6).double()
    got = reference("rms_norm")(x, w, 1e-3)
    for n in range(2):
        scale = math.sqrt(sum(v * v for v in x[n].tolist()) / 6 + 1e-3)
        for d in range(6):
            assert got[n, d].item() == pytest.approx(w[d].item() * x[n, d].item() / scale)


def test_rms_norm_takes_its_statistics_in_float32() -> None:
    x = torch.full((1, 4096), 0.1, dtype=torch.bfloat16)
    w = torch.ones(4096, dtype=torch.bfloat16)
    got = reference("rms_norm")(x, w, 0.0)
    assert got.dtype == torch.bfloat16
    assert (got == 1.0).all(), "a bfloat16 sum of 4096 terms would stop growing"


def test_a_wide_weight_multiplies_before_the_result_is_rounded() -> None:
    torch.manual_seed(4)
    x = torch.randn(8, 64).to(torch.bfloat16)
    w = torch.randn(64)
    got = reference("rms_norm")(x, w, 1e-5)
    exact = reference("rms_norm")(x.double(), w.double(), 1e-5)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, exact.to(torch.bfloat16))
    assert not torch.equal(got, reference("rms_norm")(x, w.to(torch.bfloat16), 1e-5))
    residual = torch.randn(8, 64).to(torch.bfloat16)
    normed, total = reference("add_rms_norm")(x, residual, w, 1e-5)
    assert torch.equal(normed, reference("rms_norm")(total, w, 1e-5))


@pytest.mark.parametrize(
    ("op", "feature"),
    [("rms_norm", "wide_weight"), ("paged_attention", "window"), ("paged_attention", "sinks")],
)
def test_a_feature_is_computed_by_a_kernel_that_lists_it(op: str, feature: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert feature in choose(op, "cpu", dtype, needs=[feature]).features
        plain = choose(op, "cpu", dtype)
        assert plain.preference == max(
            kernel.preference for kernel in candidates(op) if kernel.supports("cpu", dtype)
        )
    with pytest.raises(NoKernelError, match="with \\['unheard of'\\]"):
        choose(op, "cpu", torch.float32, needs=["unheard of"])


def test_add_rms_norm_is_add_then_norm() -> None:
    x, r, w = (torch.randn(3, 8).double(), torch.randn(3, 8).double(), torch.randn(8).double())
    normed, total = reference("add_rms_norm")(x, r, w, 1e-5)
    torch.testing.assert_close(total, x + r)
    torch.testing.assert_close(normed, reference("rms_norm")(x + r, w, 1e-5))


def test_a_norm_by_its_total_is_the_norm_of_all_heads() -> None:
    x, w = torch.randn(3, 2, 4).double(), torch.randn(2, 4).double()
    total = x.square().sum((1, 2))
    torch.testing.assert_close(reference("squares")(x), total)
    totals = reference("stack_totals")(torch.randn(3).double(), total)
    got = reference("rms_norm_by_total")(x, totals, w, 1, 8, 1e-3)
    expected = reference("rms_norm")(x.flatten(1), w.flatten(), 1e-3)
    torch.testing.assert_close(got.flatten(1), expected)


@pytest.mark.parametrize("shape", [(5, 8), (5, 3, 8), (5, 2, 3, 8)])
def test_rope_is_a_complex_rotation_of_the_halves(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).double()
    angles = torch.randn(5, 4).double()
    full = torch.cat((angles, angles), -1)
    got = reference("rope")(x, full.cos(), full.sin())
    turn = torch.polar(torch.ones_like(angles), angles).view(5, *[1] * (x.dim() - 2), 4)
    z = torch.complex(x[..., :4], x[..., 4:]) * turn
    torch.testing.assert_close(got, torch.cat((z.real, z.imag), -1))


@pytest.mark.parametrize("shape", [(5, 8), (5, 3, 8)])
def test_rope_pairs_is_a_complex_rotation_of_neighbours(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).double()
    angles = torch.randn(5, 4).double()
    full = torch.cat((angles, angles), -1)
    got = reference("rope_pairs")(x, full.cos(), full.sin())
    turn = torch.polar(torch.ones_like(angles), angles).view(5, *[1] * (x.dim() - 2), 4)
    z = torch.view_as_complex(x.unflatten(-1, (4, 2))) * turn
    torch.testing.assert_close(got, torch.view_as_real(z).flatten(-2))


def test_silu_mul_has_the_gate_first() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0, 5.0]]).double()
    got = reference("silu_mul")(x)
    assert got[0, 0].item() == pytest.approx(3.0 / (1 + math.exp(-1.0)))
    assert got[0, 1].item() == pytest.approx(-2.0 * 5.0 / (1 + math.exp(2.0)))


@given(st.integers(1, 5), st.integers(1, 4), st.lists(st.integers(0, 19), min_size=1))
def test_embedding_slices_sum_to_the_whole(ways: int, rows: int, ids: list[int]) -> None:
    table = torch.randn(ways * rows, 3).double()
    tokens = torch.tensor([i % (ways * rows) for i in ids], dtype=torch.int32)
    embed = reference("embedding")
    pieces = [embed(tokens, part, i * rows) for i, part in enumerate(table.split(rows))]
    assert torch.equal(torch.stack(pieces).sum(0), table[tokens.long()])
    assert torch.equal(embed(tokens, table, 0), table[tokens.long()])


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Draw (cached, new) token counts."""
    return draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), min_size=1, max_size=4))


@settings(max_examples=40)
@given(
    requests(),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 3),
    st.integers(0, 2**31),
    st.sampled_from([0, 1, 3, 8]),
    st.booleans(),
)
def test_paged_attention_is_causal_attention_over_each_request(
    counts: list[tuple[int, int]], size: int, padding: int, seed: int, window: int, sunk: bool
) -> None:
    """Against dense attention, request by request, with blocks scattered over the cache."""
    random = torch.Generator().manual_seed(seed)
    heads, groups, dim = 2, 3, 4

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    needed = [-(-(cached + new) // size) for cached, new in counts]
    order = torch.randperm(sum(needed), generator=random).add(1).split(needed)
    tables = torch.zeros(len(counts), max(needed), dtype=torch.int32)
    caches = [randn(sum(needed) + 1, heads, size, dim) for _ in range(2)]
    starts, slots, dense = [0], [], []
    total = sum(new for _, new in counts)
    q, k, v = (
        randn(total + padding, heads, groups, dim),
        *(randn(total + padding, heads, dim) for _ in range(2)),
    )
    for row, (cached, new) in enumerate(counts):
        tables[row, : needed[row]] = order[row]
        begin = starts[-1]
        past = []
        for cache, fresh in zip(caches, (k, v), strict=True):
            rows = [cache[int(order[row][p // size]), :, p % size] for p in range(cached)]
            past.append(torch.stack([*rows, *fresh[begin : begin + new]]))
        dense.append(past)
        slots += [int(order[row][p // size]) * size + p % size for p in range(cached, cached + new)]
        starts.append(begin + new)
    batch = SimpleNamespace(
        cache_slots=torch.tensor([*slots, *[0] * padding]),
        query_starts=torch.tensor(starts, dtype=torch.int32),
        context_lens=torch.tensor([sum(pair) for pair in counts], dtype=torch.int32),
        block_tables=tables,
    )
    sinks = randn(heads, groups) if sunk else torch.full((heads, groups), -math.inf).double()
    if window:  # what no query sees may have been given to others
        for row, (cached, _) in enumerate(counts):
            tables[row, : max(cached - window + 1, 0) // size] = 0
        for cache in caches:
            cache[0] = math.nan
    run = reference("paged_attention")
    out = run(q, k, v, *caches, batch, 0.5, window, sinks if sunk else None)
    assert (out[total:] == 0).all()
    for row, (cached, new) in enumerate(counts):
        keys, values = dense[row]
        for index in range(new):
            seen = cached + index + 1
            first = max(seen - window, 0) if window else 0
            query = q[starts[row] + index]
            scores = torch.einsum("kgh,skh->kgs", query, keys[first:seen]).mul(0.5)
            weights = torch.cat((scores, sinks[..., None]), -1).softmax(-1)[..., :-1]
            expected = torch.einsum("kgs,skh->kgh", weights, values[first:seen])
            torch.testing.assert_close(out[starts[row] + index], expected)
    for slot, key in zip(slots, k, strict=False):
        assert torch.equal(caches[0][slot // size, :, slot % size], key)


def mixture(seed: int) -> tuple[torch.Tensor, ...]:
    """Return x, ids, weights, w_gate, w_up, w_down: 5 tokens, 2 of 4 experts, d 3, j 6."""
    torch.manual_seed(seed)
    shapes = [(5, 3), (5, 2), (4, 6, 3), (4, 6, 3), (4, 3, 6)]
    x, weights, gate, up, down = (torch.randn(shape).double() for shape in shapes)
    ids = torch.stack([torch.randperm(4)[:2] for _ in range(5)]).int()
    return x, ids, weights, gate, up, down


def test_experts_token_by_token() -> None:
    x, ids, weights, gate, up, down = mixture(1)
    got = reference("experts")(x, ids, weights, gate, up, down)
    for n in range(5):
        expected = torch.zeros(3).double()
        for e, weight in zip(ids[n].tolist(), weights[n], strict=True):
            g = gate[e] @ x[n]
            expected += weight * (down[e] @ (g * torch.sigmoid(g) * (up[e] @ x[n])))
        torch.testing.assert_close(got[n], expected)


def test_clamped_experts_token_by_token() -> None:
    x, ids, weights, gate, up, down = mixture(2)
    b_gate, b_up, b_down = torch.randn(4, 6).double(), torch.randn(4, 6).double(), down[:, :, 0]
    run = reference("clamped_experts")
    got = run(3 * x, ids, weights, gate, up, down, b_gate, b_up, 1.5, 1.702)
    got += reference("expert_bias")(ids, weights, b_down)
    clamps = 0
    for n in range(5):
        expected = torch.zeros(3).double()
        for e, weight in zip(ids[n].tolist(), weights[n], strict=True):
            hidden = []
            for j in range(6):
                g = (3 * x[n] @ gate[e, j] + b_gate[e, j]).item()
                u = (3 * x[n] @ up[e, j] + b_up[e, j]).item()
                clamps += g > 1.5 or abs(u) > 1.5
                g, u = min(g, 1.5), max(min(u, 1.5), -1.5)
                hidden.append((u + 1) * g / (1 + math.exp(-1.702 * g)))
            out = down[e] @ torch.tensor(hidden).double() + b_down[e]
            expected += weight * out
        torch.testing.assert_close(got[n], expected)
    assert clamps, "nothing was clamped"


def test_softmax_router_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0]]).double()
    total = sum(math.exp(v) for v in logits[0].tolist())
    ids, weights = reference("softmax_router")(logits, 3, False)
    assert ids.tolist() == [[1, 3, 2]], "ties go to the lower expert"
    expected = [math.exp(v) / total for v in (2.0, 2.0, 1.0)]
    assert weights[0].tolist() == pytest.approx(expected)
    _, weights = reference("softmax_router")(logits, 3, True)
    assert weights[0].tolist() == pytest.approx([v / sum(expected) for v in expected])
    # A softmax over the chosen logits alone is the same as renormalised probabilities.
    same_ids, same = reference("topk_softmax_router")(logits, 3)
    assert torch.equal(ids, same_ids)
    torch.testing.assert_close(same, weights)


@given(st.integers(0, 99))
def test_sigmoid_router_by_hand(seed: int) -> None:
    torch.manual_seed(seed)
    logits, bias = torch.randn(3, 6).double(), torch.randn(6).double()
    ids, weights = reference("sigmoid_router")(logits, bias, 2, 3, 2, 1e-20, 2.5)
    for n in range(3):
        score = [1 / (1 + math.exp(-v)) for v in logits[n].tolist()]
        biased = [s + b for s, b in zip(score, bias.tolist(), strict=True)]
        groups = sorted(range(3), key=lambda g: -sum(biased[2 * g : 2 * g + 2]))[:2]
        allowed = [e for e in range(6) if e // 2 in groups]
        chosen = sorted(allowed, key=lambda e: -biased[e])[:2]
        assert ids[n].tolist() == chosen
        total = sum(score[e] for e in chosen)
        assert weights[n].tolist() == pytest.approx([2.5 * score[e] / total for e in chosen])
