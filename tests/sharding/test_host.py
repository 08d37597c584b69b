# SPDX-License-Identifier: MIT
"""Host integers: sizes know their dims, ops say which they take, counts of a step are not read."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tokenspeed_core.ops import (
    declared_batch,
    einsum,
    embedding,
    rms_norm_by_total,
    softmax_router,
    squares,
    stack_totals,
)
from tokenspeed_core.sharding import Placed, TraceError, declare, module, trace
from tokenspeed_core.sharding.host import Extent


@module
class Params:
    embed: Placed[Tensor, "v d"]
    heads: Placed[Tensor, "d k h"]
    norm: Placed[Tensor, "k h"]


def traced(function: Any) -> Any:
    """Trace `function(params, batch, x)` for embedded tokens `x[n,d]`."""

    def forward(p: Any, caches: Any, batch: Any) -> Any:
        return function(p, batch, embedding(batch.tokens, p.embed)), caches

    params = declare(Params, {"v": 16, "d": 8, "k": 4, "h": 2}, torch.float32)
    return trace(forward, params, (), declared_batch())


def normed(width: Any, column: int = 0) -> Any:
    def run(p: Any, batch: Any, x: Any) -> Any:
        y = einsum("n d, d k h -> n k h", x, p.heads)
        total = squares(y)
        size = width(y) if callable(width) else width
        return rms_norm_by_total(y, stack_totals(total, total), p.norm, column, size, 1e-5)

    return run


def test_the_size_of_the_dims_that_an_op_means_is_taken() -> None:
    traced(normed(8))
    traced(normed(lambda y: y.shape[1] * y.shape[2]))
    traced(normed(lambda y: y.shape[2] * y.shape[1]))
    traced(normed(lambda y: y.shape[1] * 2))  # a plain int: right by its value


@pytest.mark.parametrize(
    ("width", "told"),
    [
        (4, "got 4"),
        (lambda y: y.shape[1], "got 4, the size of k"),
    ],
)
def test_another_size_is_refused_with_the_right_one(width: Any, told: str) -> None:
    with pytest.raises(TraceError) as raised:
        traced(normed(width))
    text = str(raised.value)
    assert told in text
    assert "the size of k h (argument 5)" in text
    assert "give 8" in text
    assert "test_host.py" in text


def test_a_size_of_another_dim_is_refused_though_it_is_equal() -> None:
    """`d` is 8 as `k h` together are."""

    def run(p: Any, batch: Any, x: Any) -> Any:
        return normed(lambda y: x.shape[1])(p, batch, x)

    with pytest.raises(TraceError, match="got 8, the size of d"):
        traced(run)


def test_an_index_and_a_count_stay_within_their_dims() -> None:
    with pytest.raises(TraceError, match="points into z"):
        traced(normed(8, column=2))
    for active in (0, 9):
        with pytest.raises(TraceError, match="counts among d"):
            traced(lambda p, batch, x, active=active: softmax_router(x, active, True)[1])
    traced(lambda p, batch, x: softmax_router(x, 8, True)[1])


def test_sizes_multiply_by_name_and_are_ints_else() -> None:
    both = Extent(3, ("k",)) * Extent(4, ("h",))
    assert isinstance(both, Extent)
    assert (int(both), both.dims) == (12, ("k", "h"))
    assert type(Extent(3, ("k",)) * 2) is int
    assert type(Extent(3, ("k",)) + 1) is int
    assert repr(both) == "12"


@pytest.mark.parametrize(
    "read",
    [
        lambda batch: batch.num_rows == 1,
        lambda batch: batch.max_query > 1,
        lambda batch: bool(batch.num_decode_rows),
        lambda batch: range(batch.num_rows),
        lambda batch: batch.max_context // 2,
        lambda batch: 1.0 / batch.num_rows,
    ],
)
def test_a_count_of_the_step_is_not_read_while_tracing(read: Any) -> None:
    """Ranks that serve different requests would take different ways, and hang in a collective."""

    def run(p: Any, batch: Any, x: Any) -> Any:
        read(batch)
        return x

    with pytest.raises(TraceError, match=r"the host reads Batch\.\w+, a count of the step") as told:
        traced(run)
    assert "test_host.py" in str(told.value)
