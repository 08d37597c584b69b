# SPDX-License-Identifier: MIT
"""What `infer` and the verifier accept is right, and what is right they accept.

Every placement of every operand of every op, on two and three ranks: Replicated, Sharded on each
dim, Partial as random summands.  The op runs on what each rank holds, in float64, and the results
are read as the accepted types say.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from functools import partial

import attrs
import pytest
import torch
from test_rules import CASES, SIZE, Case, own_rule
from torch import Tensor

from tokenspeed_core.ops import einsum
from tokenspeed_core.sharding import VerificationError, parse_mesh, parse_spec
from tokenspeed_core.sharding.infer import Operand, RuleViolationError, infer
from tokenspeed_core.sharding.line import Line
from tokenspeed_core.sharding.merge import merged
from tokenspeed_core.sharding.op import OPS, Op
from tokenspeed_core.sharding.program import Apply, Code, Var
from tokenspeed_core.sharding.reduction import ARGMAX, LSE, MAX, SUM, SUM1, SUMSQ, reduced
from tokenspeed_core.sharding.rule import Rule
from tokenspeed_core.sharding.spec import Spec
from tokenspeed_core.sharding.verify import Verification

LINE = Line("test_soundness.py", 1)
EVERY_UP_TO = 2000  # placements; of ops with more, those where at most two operands are placed
REFUSED = 400  # placements a sample may have for the figure of completeness
# Operands that a program stores, as parameters and caches: those are never Partial.
STORED = {
    "rms_norm": (1,),
    "add_rms_norm": (2,),
    "rms_norm_by_total": (2,),
    "sink_attention": (3, 4, 5),
    "rope_angles": (1,),
    "embedding": (1,),
    "experts": (3, 4, 5),
    "clamped_experts": (3, 4, 5, 6, 7),
    "expert_bias": (2,),
    "sigmoid_router": (1,),
    "paged_attention": (3, 4),
    "latent_attention": (4, 5, 6),
    "causal_conv": (1, 2),
    "delta_gates": (2, 3),
    "gated_delta_rule": (5,),
    "gated_rms_norm": (2,),
}
State = str | int  # R, P or another that is owed, or the dim that is sharded
OWED = {"P": SUM, "1": SUM1, "Q": SUMSQ, "M": MAX, "A": ARGMAX, "L": LSE}


@attrs.frozen(eq=False)
class Sample:
    """A case with operands, the op's result on them, and how to run it on other operands."""

    case: Case
    op: Op
    rule: Rule
    whole: tuple[Tensor, ...]

    @classmethod
    def of(cls, case: Case) -> "Sample":
        torch.manual_seed(11)
        whole = []
        for index, dims in enumerate(case.dims):
            shape = [SIZE[name] for name in dims.split()]
            if index in case.ids:
                whole.append(torch.randint(0, SIZE[case.ids[index]], shape))
            else:
                whole.append(torch.randn(shape, dtype=torch.float64))
        op = OPS[case.name]
        return cls(case, op, own_rule(op, case), tuple(whole))

    def run(self, operands: Sequence[Tensor], *extra: object) -> tuple[Tensor, ...]:
        if self.case.equation:
            return (einsum(self.case.equation, *operands),)
        operands = [operand.clone() for operand in operands]  # caches are written in place
        if self.case.run:
            return self.case.run(*operands)
        result = self.op.run(*operands, *self.case.static, *extra)
        return result if isinstance(result, tuple) else (result,)

    def states(self, index: int, ways: int) -> list[State]:
        shape = self.whole[index].shape
        partial: list[State] = [] if index in self.case.ids else ["P"]
        if any(index in group for group in (*self.rule.linear, *self.rule.alone)):
            partial += ["1", "Q"]
        return ["R", *partial, *(dim for dim, size in enumerate(shape) if size % ways == 0)]

    def placements(self, ways: int) -> Iterator[tuple[State, ...]]:
        each = [self.states(index, ways) for index in range(len(self.whole))]
        count = 1
        for states in each:
            count *= len(states)
        if count <= EVERY_UP_TO:
            yield from itertools.product(*each)
            return
        found = dict.fromkeys(self.along_a_factor(ways))
        for some in itertools.combinations(range(len(each)), 2):
            for chosen in itertools.product(*(each[index] for index in some)):
                states: list[State] = ["R"] * len(each)
                for index, state in zip(some, chosen, strict=True):
                    states[index] = state
                found[tuple(states)] = None
        yield from found

    def along_a_factor(self, ways: int) -> Iterator[tuple[State, ...]]:
        """Yield placements that shard one factor wherever it stands, and each linear group."""
        for factor in sorted({factor for factors in self.rule.inputs for factor in factors}):
            states = tuple(
                factors.index(factor) if factor in factors else "R" for factors in self.rule.inputs
            )
            if all(state in self.states(index, ways) for index, state in enumerate(states)):
                yield states
        for group, owed in itertools.product((*self.rule.linear, *self.rule.alone), "P1Q"):
            yield tuple(owed if index in group else "R" for index in range(len(self.whole)))

    def spec(self, factors: Sequence[str], state: State) -> Spec:
        plain = parse_spec(" ".join(f"x{factor.strip('.')}" for factor in factors))
        if state in OWED:
            return attrs.evolve(plain, partial=("tp",), reduce=OWED[str(state)])
        dims = [
            attrs.evolve(dim, axes=("tp",) if index == state else ())
            for index, dim in enumerate(plain.dims)
        ]
        return attrs.evolve(plain, dims=tuple(dims))

    def accepted(self, states: Sequence[State], ways: int) -> tuple[State, ...] | None:
        """Return the results' states, if `infer` moves nothing and the verifier agrees."""
        mesh = parse_mesh(f"tp={ways}")
        specs = [self.spec(f, s) for f, s in zip(self.rule.inputs, states, strict=True)]
        try:
            found = infer(self.rule, [Operand(spec, False) for spec in specs], mesh)
        except RuleViolationError:
            return None
        if list(found.targets) != specs:
            return None
        claimed = [
            found.result(factors, [f"x{factor.strip('.')}" for factor in factors])
            for factors in self.rule.outputs
        ]
        return tuple(map(state_of, claimed)) if self.verified(specs, claimed, mesh) else None

    def verified(self, specs: Sequence[Spec], claimed: Sequence[Spec], mesh: object) -> bool:
        def var(name: str, spec: Spec, kind: str) -> Var:
            return Var(name, spec, (None,) * len(spec.dims), torch.float64, kind, LINE)

        donated = dict(self.op.donates)
        operands = [
            var(f"a{i}", spec, "cache" if i in donated else "activation")
            for i, spec in enumerate(specs)
        ]
        results = [
            var(f"r{i}", spec, "cache" if i in donated.values() else "activation")
            for i, spec in enumerate(claimed)
        ]
        args = (self.case.equation, *operands) if self.case.equation else tuple(operands)
        apply = Apply(self.op, self.rule, args, tuple(operands), (), tuple(results), LINE, ())
        code = Code("op", (), (), (), (), (), (), (), (), ())
        try:
            Verification(mesh, code).apply(apply)  # type: ignore[arg-type]
        except VerificationError:
            return False
        return True

    def denoted(self, states: Sequence[State], ways: int) -> list[set[State]]:
        """Return the states in which each result denotes the op's; nothing if a rank fails."""
        local = [parts(x, state, ways) for x, state in zip(self.whole, states, strict=True)]
        offset = [
            (index, factors.index(self.rule.offset))
            for index, factors in enumerate(self.rule.inputs)
            if self.rule.offset in factors and states[index] == factors.index(self.rule.offset)
        ]
        merges = any(
            isinstance(state, int) and factors[state] in self.rule.merges
            for factors, state in zip(self.rule.inputs, states, strict=True)
        )
        ranks = []
        for rank in range(ways):
            operands = [pieces[rank] for pieces in local]
            start = [rank * local[index][rank].shape[dim] for index, dim in offset[:1]]
            try:
                if merges and self.case.share:
                    copies = [operand.clone() for operand in operands]
                    ranks.append(self.case.share(rank, ways, *copies))
                else:
                    ranks.append(self.run(operands, *start))
            except (RuntimeError, IndexError, ValueError, TypeError):
                return [set() for _ in self.rule.outputs]
        expected = self.run(self.whole)
        return [
            {
                state
                for state in ("R", *OWED, *range(whole.dim()))
                if same(joined([rank[index] for rank in ranks], state), whole)
            }
            for index, whole in enumerate(expected)
        ]


def state_of(spec: Spec) -> State:
    if spec.partial:
        return next(state for state, kind in OWED.items() if kind == spec.reduce)
    return next((index for index, dim in enumerate(spec.dims) if dim.axes), "R")


def parts(x: Tensor, state: State, ways: int) -> list[Tensor]:
    if state == "R":
        return [x] * ways
    if state == "1":
        owner = torch.randint(0, ways, x.shape)
        return [x * (owner == rank) for rank in range(ways)]
    if state in ("P", "Q"):  # summands of both signs, none of them near a share of the whole
        summands = [torch.randn_like(x) * (rank + 1) for rank in range(ways - 1)]
        return [*summands, x - sum(summands)]
    return list(x.chunk(ways, int(state)))


def joined(pieces: list[Tensor], state: State) -> Tensor | None:
    try:
        if state == "A" and pieces[0].shape[-1:] != (2,):
            return None
        if state == "1" and (sum((piece != 0).int() for piece in pieces) > 1).any():  # type: ignore[union-attr]
            return None
        if state in ("P", "1", "Q", "M", "A"):
            return reduced(pieces, OWED[str(state)])
        if state == "L":
            return merged(pieces) if pieces[0].is_floating_point() else None
        if state == "R":
            return pieces[0] if all(map(partial(equal, pieces[0]), pieces)) else None
        return torch.cat(pieces, int(state))
    except (RuntimeError, IndexError):
        return None


def equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.allclose(left, right, 0, 0, equal_nan=True)


def same(got: Tensor | None, expected: Tensor) -> bool:
    """Return whether a result is the whole one; kernels with float32 islands round as those."""
    if got is None or got.shape != expected.shape:
        return False
    return torch.allclose(got.double(), expected.double(), atol=2e-6, rtol=2e-6, equal_nan=True)


@pytest.mark.parametrize("ways", [2, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.equation}")
def test_an_accepted_placement_is_right(case: Case, ways: int) -> None:
    sample = Sample.of(case)
    tried = 0
    for states in sample.placements(ways):
        claimed = sample.accepted(states, ways)
        if claimed is not None:
            tried += 1
            for claim, right in zip(claimed, sample.denoted(states, ways), strict=True):
                assert claim in right, f"{case.name} {states}: claims {claimed}, right: {right}"
    assert tried, "at least the replicated placement is accepted"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.equation}")
def test_no_other_claim_is_verified(case: Case) -> None:
    """The verifier trusts no claim: of all result types, it passes those that are right."""
    sample = Sample.of(case)
    mesh = parse_mesh("tp=2")
    chosen = list(sample.placements(2))
    random.Random(5).shuffle(chosen)
    kept = [states for states in chosen if sample.accepted(states, 2)][:12]
    for states in (*kept, *chosen[:40]):
        specs = [sample.spec(f, s) for f, s in zip(sample.rule.inputs, states, strict=True)]
        claims = list(
            itertools.product(
                *(("R", *OWED, *range(len(factors))) for factors in sample.rule.outputs)
            )
        )
        right = sample.denoted(states, 2)
        for claim in random.Random(7).sample(claims, min(len(claims), 60)):
            given = [sample.spec(f, s) for f, s in zip(sample.rule.outputs, claim, strict=True)]
            if sample.verified(specs, given, mesh):
                assert all(state in each for state, each in zip(claim, right, strict=True))


def aligned(rule: Rule, states: Sequence[State]) -> bool:
    """Return whether every factor is placed alike wherever it stands."""
    placed = {
        factors[state]
        for factors, state in zip(rule.inputs, states, strict=True)
        if isinstance(state, int)
    }
    return len(placed) <= 1 and all(
        isinstance(state, int) or not placed & set(factors)
        for factors, state in zip(rule.inputs, states, strict=True)
    )


def test_what_is_right_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    """The share of right placements that are accepted, over all ops.

    One that is not aligned can be right only where results do not share operands.
    """
    accepted, missed, unaligned = 0, [], []
    for case in CASES:
        sample = Sample.of(case)
        refused = []
        for states in sample.placements(2):
            if any(states[index] in ("P", "1", "Q") for index in STORED.get(case.name, ())):
                continue
            if sample.accepted(states, 2):
                accepted += 1
            else:
                refused.append(states)
        random.Random(3).shuffle(refused)
        for states in refused[:REFUSED]:
            if all(sample.denoted(states, 2)):
                missing = missed if aligned(sample.rule, states) else unaligned
                missing.append(f"{case.name} {states}")
    share = accepted / (accepted + len(missed))
    every = accepted / (accepted + len(missed) + len(unaligned))
    with capsys.disabled():
        print(f"\n{accepted} right placements accepted: {share:.1%} of the aligned ones, "
              f"{every:.1%} of all; refused:", *missed, sep="\n  ")  # fmt: skip
    assert share >= 0.95
    assert every >= 0.85
