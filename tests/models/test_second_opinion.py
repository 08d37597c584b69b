# SPDX-License-Identifier: MIT
"""The second opinion: functorch sees what a function does besides calling ops."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_of
from tiny_families import FAMILIES
from torch import Tensor

from tokenspeed_core.finding import Finding
from tokenspeed_core.model_check import BLOCK, _batch, _empty
from tokenspeed_core.ops import declared_batch, einsum, embedding, rms_norm
from tokenspeed_core.second_opinion import second_opinion
from tokenspeed_core.sharding import Placed, declare, leaves, map_leaves, module, spmd

Hidden = Placed[Tensor, "n d"]


@module
class Params:
    embed: Placed[Tensor, "v@tp d"]
    norm: Placed[Tensor, "d"]


@spmd
def logits(p: Params, x: Hidden) -> Tensor:
    return einsum("n d, v d -> n v", rms_norm(x, p.norm, 1e-5), p.embed)


def opinion(between: Callable[[Params, Any], Any]) -> list[Finding]:
    """Return the findings of a small model with `between` in its middle."""
    declared = declare(Params, {"v": 16, "d": 8}, torch.float32)
    values = {path: torch.randn(leaf.sizes) for path, leaf in leaves(declared)}
    params = map_leaves(lambda path, _: values[path], declared)

    def forward(p: Params, caches: Any, batch: Any) -> Any:
        return logits(p, between(p, embedding(batch.tokens, p.embed)) * 2.0), caches

    step = _batch(torch.arange(16), 0, 16, 1)
    return list(second_opinion(forward, (declared, (), declared_batch()), (params, (), step)))


def test_a_pure_function_is_traced_as_it_runs() -> None:
    found = opinion(lambda p, x: x + x * 0.5)
    assert [finding.holds for finding in found] == [True] * 3
    assert found[-1].detail == "6 ops, the same in both"


def test_a_write_is_seen() -> None:
    (write, _) = opinion(lambda p, x: p.norm.mul_(2.0) * 0.0 + x)
    assert (write.holds, write.detail) == (False, "norm")


def test_a_tensor_that_is_no_argument_is_seen() -> None:
    constant = torch.ones(8)
    (_, hidden) = opinion(lambda p, x: x * constant)
    assert not hidden.holds
    assert "_tensor_constant" in hidden.detail


def test_state_kept_between_runs_is_seen() -> None:
    calls: list[int] = []

    def counting(p: Params, x: Any) -> Any:
        calls.append(0)
        return x * float(len(calls))

    (_, hidden) = opinion(counting)
    assert (hidden.holds, hidden.detail) == (False, "two runs differ: it keeps state")


def test_another_program_for_the_tracer_is_seen() -> None:
    (*_, last) = opinion(lambda p, x: x + x if type(x).__name__ == "Value" else x * 2.0)
    assert not last.holds
    assert last.detail.startswith("op 1: traced add(0.0, 0.0), ran scale(0.0)")


def test_a_read_of_a_value_is_refused() -> None:
    with pytest.raises(TypeError, match="one control flow"):
        opinion(lambda p, x: x if x else p.norm)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_traced_as_it_runs(family: str) -> None:
    model = tiny_of(FAMILIES[family](), torch.float32, (12,))
    declared = (
        model.family.params(model.config, torch.float32),
        model.family.caches(model.config, BLOCK, torch.float32),
        declared_batch(),
    )
    params = map_leaves(lambda path, _: model.params[path], declared[0])
    step = _batch(torch.arange(16) % 90, 0, 16, 1)
    given = (params, map_leaves(_empty, declared[1]), step)
    found = list(second_opinion(model.family.forward, declared, given, model.config))
    assert len(found) == 3
    assert all(finding.holds for finding in found), "\n".join(map(str, found))
