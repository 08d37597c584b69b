# SPDX-License-Identifier: MIT
"""Every rule that ops declare is true: local ops on shards denote the op on whole tensors.

Brute force over all placements on one axis of two or three ranks.  A Partial operand is split
into random summands, so a wrong claim of linearity cannot cancel.
"""

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import attrs
import pytest
import torch
from torch import Tensor

from tokenspeed_core.ops import (
    LayerKV,
    LayerLatent,
    einsum,
    latent_attention,
    latent_attention_share,
    paged_attention,
    paged_attention_share,
    rms_norm_by_total,
    sink_attention,
    sink_attention_share,
)
from tokenspeed_core.sharding.op import OPS, Op
from tokenspeed_core.sharding.reduction import KINDS, SUM, reduced
from tokenspeed_core.sharding.rule import Rule, contraction

SIZE = {
    "n": 6,
    "m": 6,
    "d": 12,
    "v": 12,
    "f": 6,
    "k": 6,
    "g": 6,
    "h": 12,
    "i": 6,
    "e": 6,
    "r": 6,
    "a": 2,
    "j": 6,
}
SIZE |= {"b": 6, "s": 6, "l": 6, "w": 6, "p": 6, "o": 6, "x": 9, "y": 8, "c": 3, "u": 6, "z": 2}
WHOLE = object()


@attrs.frozen(eq=False)
class Case:
    """An op on operands with these dims; ids are drawn below the named factor's size."""

    name: str
    dims: tuple[str, ...]
    ids: dict[int, str] = attrs.field(factory=dict)
    equation: str = ""
    static: tuple[object, ...] = ()
    run: Callable[..., tuple[Tensor, ...]] | None = None  # where the op's is not on plain tensors
    share: Callable[..., tuple[Tensor, ...]] | None = None  # of a rank: (place, ways, *operands)


# Two requests: four tokens of a new one, then two that follow three; caches of six blocks or
# slots.
STEP = SimpleNamespace(
    query_starts=torch.tensor([0, 4, 6]),
    context_lens=torch.tensor([4, 5]),
    block_tables=torch.tensor([[1], [2]]),
    cache_slots=torch.tensor([6, 7, 8, 9, 15, 16]),
    state_blocks=torch.tensor([4, 2]),
)


def attend(*operands: Tensor) -> tuple[Tensor, ...]:
    o, kv = paged_attention(*operands[:3], LayerKV(k=operands[3], v=operands[4]), STEP, 0.3)  # type: ignore[arg-type]
    return o, kv.k, kv.v


def attend_share(place: int, ways: int, *operands: Tensor) -> tuple[Tensor, ...]:
    q, k, v, keys, values = operands
    kv = LayerKV(k=keys, v=values)
    o, kv = paged_attention_share(q, k, v, kv, STEP, 0.3, place, ways)  # type: ignore[arg-type]
    return o, kv.k, kv.v


def attend_with_sinks(*operands: Tensor) -> tuple[Tensor, ...]:
    q, k, v, sinks, keys, values = operands
    o, kv = sink_attention(q, k, v, sinks, LayerKV(k=keys, v=values), STEP, 0.3, 2)
    return o, kv.k, kv.v


def attend_with_sinks_share(place: int, ways: int, *operands: Tensor) -> tuple[Tensor, ...]:
    q, k, v, sinks, keys, values = operands
    kv = LayerKV(k=keys, v=values)
    o, kv = sink_attention_share(q, k, v, sinks, kv, STEP, 0.3, 2, place, ways)  # type: ignore[arg-type]
    return o, kv.k, kv.v


def norm_by_squares(x: Tensor, roots: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return (rms_norm_by_total(x, roots.square(), w, 1, 72, 1e-5),)


def attend_latents(*operands: Tensor) -> tuple[Tensor, ...]:
    o, kv = latent_attention(*operands[:6], LayerLatent(rows=operands[6]), STEP, 0.3)  # type: ignore[arg-type]
    return o, kv.rows


def attend_latents_share(place: int, ways: int, *operands: Tensor) -> tuple[Tensor, ...]:
    kv = LayerLatent(rows=operands[6])
    o, kv = latent_attention_share(*operands[:6], kv, STEP, 0.3, place, ways)  # type: ignore[arg-type]
    return o, kv.rows


CASES = [
    Case("einsum", ("n d", "d k h"), equation="n d, d k h -> n k h"),
    Case("einsum", ("n k h", "k h d"), equation="n k h, k h d -> n d"),
    Case("einsum", ("n k e", "k e d"), equation="n k e, k e d -> n k d"),
    Case("add", ("n k", "n k")),
    Case("add", ("n k", "k")),
    Case("mul", ("n k", "n k")),
    Case("mul", ("n k", "k")),
    Case("shift", ("n k",), static=(1.5,)),
    Case("scale", ("n k",), static=(1.5,)),
    Case("rms_norm", ("n d", "d"), static=(1e-5,)),
    Case("add_rms_norm", ("n d", "n d", "d"), static=(1e-5,)),
    Case("squares", ("n k g h",)),
    Case("stack_totals", ("n", "n")),
    Case("rms_norm_by_total", ("n k g h", "n z", "k g h"), run=norm_by_squares),
    Case("rope", ("n k h", "n h", "n h")),
    Case("rope", ("n k h", "n r", "n r")),
    Case("rope_pairs", ("n k h", "n h", "n h")),
    Case("rope_angles", ("n", "i"), ids={0: "n"}),
    Case("sigmoid", ("n f",)),
    Case("silu_mul", ("n f", "n f")),
    Case("embedding", ("n", "v d"), ids={0: "v"}),
    Case("take_rows", ("n d", "m"), ids={1: "n"}),
    Case("experts", ("n d", "n a", "n a", "e j d", "e j d", "e d j"), ids={1: "e"}),
    Case(
        "clamped_experts",
        ("n d", "n a", "n a", "e j d", "e j d", "e d j", "e j", "e j"),
        ids={1: "e"},
        static=(1.0, 1.7),
    ),
    Case("expert_bias", ("n a", "n a", "e d"), ids={0: "e"}),
    Case("softmax_router", ("n e",), static=(2, True)),
    Case("softmax_router", ("n e",), static=(2, False, 3, 2, 1.5)),
    Case("topk_softmax_router", ("n e",), static=(2,)),
    Case("sigmoid_router", ("n e", "e"), static=(2, 3, 2, 1e-20, 2.5)),
    Case("zeros_like", ("n d",)),
    Case("widen", ("n d",)),
    Case(
        "paged_attention",
        ("n k g h", "n k h", "n k h", "b k s h", "b k s h"),
        run=attend,
        share=attend_share,
    ),
    Case(
        "sink_attention",
        ("n k g h", "n k h", "n k h", "k g", "b k s h", "b k s h"),
        run=attend_with_sinks,
        share=attend_with_sinks_share,
    ),
    Case(
        "latent_attention",
        ("n k h", "n k r", "n c", "n r", "k h c", "k u c", "b s x"),
        run=attend_latents,
        share=attend_latents_share,
    ),
    Case("causal_conv", ("n l w o", "l w o x", "b l w o y"), static=(STEP,)),
    Case("delta_gates", ("n l w", "n l w", "l w", "l w")),
    Case("l2_norm", ("n l p",), static=(1e-6,)),
    Case(
        "gated_delta_rule",
        ("n l p", "n l p", "n l w o", "n l w", "n l w", "b l w p o"),
        static=(STEP, 0.3),
    ),
    Case("gated_rms_norm", ("n l w o", "n l w o", "o"), static=(1e-6,)),
    Case("largest", ("m v",)),
    Case("pick", ("m v",)),
    Case("token_keys", ("m v",), static=(12,)),
    Case("masses", ("m v", "m", "m")),
    Case("total_mass", ("m v", "m")),
    Case("units", ("m v",), ids={0: "v"}),
    Case("masses_from", ("m v", "m v", "m"), ids={0: "v", 1: "v", 2: "v"}),
    Case("histogram", ("m v", "m v", "m"), ids={0: "v", 1: "v", 2: "v"}, static=(0,)),
    Case("descend", ("m x", "m", "m"), ids={0: "n", 1: "v", 2: "v"}, static=(0,)),
    Case("count_target", ("m",), ids={0: "k"}),
    Case("mass_target", ("m x", "m"), ids={0: "v"}),
    Case("draw_scores", ("m v", "m", "m", "m"), ids={2: "v", 3: "v"}),
    Case("scores_from", ("m v", "m v", "m"), ids={1: "v", 2: "v"}),
    Case("logit_of", ("m v", "m z"), ids={1: "v"}),
    Case("chosen", ("m z",)),
    Case("reported", ("m z", "m", "m", "m"), ids={3: "v"}),
]


def own_rule(op: Op, case: Case) -> Rule:
    if case.equation:
        return contraction(case.equation)
    ranks = tuple(len(dims.split()) for dims in case.dims)
    if op.text and len(ranks) == 2:
        every = tuple(f".{i}" for i in range(max(ranks)))
        inputs = tuple(every[len(every) - rank :] for rank in ranks)
        return attrs.evolve(op.rule, inputs=inputs, outputs=(every,), shardable=frozenset(every))
    return op.rule.expanded(ranks)


def placements(rule: Rule) -> Iterator[tuple[list[object], list[object]]]:
    """Yield (operand states, result states) that the rule allows on one axis."""
    count, results = len(rule.inputs), len(rule.outputs)
    for group in rule.linear:
        states: list[object] = ["P" if i in group else WHOLE for i in range(count)]
        yield states, [WHOLE if rule.constant else SUM] * results
    for factor in sorted(rule.shardable):
        states = [factors.index(factor) if factor in factors else WHOLE for factors in rule.inputs]
        outputs = [result_state(rule, index, factor) for index in range(results)]
        if any(state is not WHOLE for state in states):
            assert factor in rule.sums or not set(KINDS) & set(map(str, outputs))
            yield states, outputs


def result_state(rule: Rule, index: int, factor: str) -> object:
    if factor in rule.outputs[index]:
        return rule.outputs[index].index(factor)
    depends = rule.depends[index] if rule.depends else range(len(rule.inputs))
    return rule.reduce if any(factor in rule.inputs[operand] for operand in depends) else WHOLE


def parts(x: Tensor, state: object, ways: int) -> list[Tensor]:
    if state is WHOLE:
        return [x] * ways
    if state == "P":
        summands = [torch.randn_like(x) for _ in range(ways - 1)]
        return [*summands, x - sum(summands)]
    assert isinstance(state, int)
    return list(x.chunk(ways, state))


def joined(pieces: list[Tensor], state: object) -> Tensor:
    if isinstance(state, str):
        return reduced(pieces, state)
    if state is WHOLE:
        return pieces[0]
    assert isinstance(state, int)
    return torch.cat(pieces, state)


@pytest.mark.parametrize("ways", [2, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.equation}")
def test_a_declared_rule_is_true(case: Case, ways: int) -> None:
    torch.manual_seed(3)
    op = OPS[case.name]
    rule = own_rule(op, case)
    whole = []
    for index, dims in enumerate(case.dims):
        shape = [SIZE[name] for name in dims.split()]
        if index in case.ids:
            whole.append(torch.randint(0, SIZE[case.ids[index]], shape))
        else:
            whole.append(torch.randn(shape, dtype=torch.float64))

    def run(operands: list[Tensor], *extra: object) -> tuple[Tensor, ...]:
        if case.equation:
            return (einsum(case.equation, *operands),)
        operands = [operand.clone() for operand in operands]  # caches are written in place
        if case.run:
            return case.run(*operands)
        result = op.run(*operands, *case.static, *extra)
        return result if isinstance(result, tuple) else (result,)

    expected = run(whole)
    tried = 0
    for states, outputs in placements(rule):
        if any(states[index] == "P" for index in case.ids):
            continue
        tried += 1
        local = [parts(x, state, ways) for x, state in zip(whole, states, strict=True)]
        offset = [
            (index, factors.index(rule.offset))
            for index, factors in enumerate(rule.inputs)
            if rule.offset in factors and states[index] == factors.index(rule.offset or "")
        ]
        results = []
        for rank in range(ways):
            extra = [rank * local[i][rank].shape[dim] for i, dim in offset[:1]]
            results.append(run([pieces[rank] for pieces in local], *extra))
        for index, state in enumerate(outputs):
            got = joined([result[index] for result in results], state)
            torch.testing.assert_close(got, expected[index], atol=1e-6, rtol=1e-6, equal_nan=True)
    assert tried == len(list(placements(rule))), "an id operand can never be Partial"
    assert tried or case.name == "none"


def test_every_placeable_op_has_a_case() -> None:
    # These stand in compiled programs only; parts of direct sums: test_direct_sums.py.
    compiled = {
        "shard",
        "own",
        "parts",
        "linear",
        "split",
        "silu_mul_packed",
        "paged_attention_share",
        "sink_attention_share",
        "latent_attention_share",
    }
    compiled |= {"norm_linear", "rope_attention", "linear_add", "norm_gate_up", "norm_moe_add"}
    compiled |= {"all_gather_linear", "all_reduce_add", "linear_reduce_scatter"}
    assert set(OPS) - compiled == {case.name for case in CASES}


def test_false_rules_are_caught() -> None:
    """The check above can fail: RMS norm is not linear, and does not shard over d."""
    rule = own_rule(OPS["rms_norm"], Case("rms_norm", ("n d", "d")))
    forged = attrs.evolve(rule, linear=((0,),), shardable=rule.shardable | {"d"})
    honest = list(itertools.islice(placements(rule), 9))
    claims = [claim for claim in placements(forged) if claim not in honest]
    assert len(claims) == 2
    x, w = torch.randn(6, 12), torch.randn(12)
    expected = OPS["rms_norm"].run(x, w, 1e-5)
    for states, outputs in claims:
        local = [parts(t, s, 2) for t, s in zip((x, w), states, strict=True)]
        results = [OPS["rms_norm"].run(local[0][r], local[1][r], 1e-5) for r in range(2)]
        assert not torch.allclose(joined(results, outputs[0]), expected, atol=1e-3)
