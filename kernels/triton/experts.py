# SPDX-License-Identifier: MIT
"""Experts of a mixture: products of the matrices with the tokens that chose an expert.

Dims: N tokens, A experts a token, E experts here, D model, J expert mlp; an assignment is one
(token, expert).  Few tokens are computed one by one, many in tiles of one expert's assignments.
Sums are in the order of a token's experts.
"""

import attrs
import torch
import triton
from torch import Tensor

from .device import Device, device_of
from .expert_order import by_expert
from .expert_rows import row_hidden, row_update
from .expert_tiles import expert_down, expert_hidden, expert_sum
from .linear import linear, norm_linear
from .norm import rms_norm
from .router import softmax_router

# So many tokens are computed one by one.
MAX_ROWS = 8


@attrs.frozen
class Tile:
    """Sizes of one launch: assignments, outputs and inputs a program, stages and warps."""

    rows: int
    outputs: int
    inputs: int
    stages: int
    warps: int = 4

    @property
    def turned(self) -> bool:
        """Whether assignments are the columns of its product."""
        return self.rows < 64


def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    start: int = 0,
) -> Tensor:
    """Return `sum_a weights[n,a] * mlp_ids[n,a](x[n,d])` `[n,d]`; see the reference."""
    return _experts(x, ids, weights, w_gate, w_up, w_down, start)


def norm_moe_add(
    x: Tensor,
    w_norm: Tensor,
    w_router: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    active: int,
    renormalise: bool,
    eps: float,
) -> Tensor:
    """Return `x[n,d]` plus the update of its norm's experts: four launches for few tokens."""
    x = x.contiguous()
    few = x.shape[0] <= MAX_ROWS
    normed = x if few else rms_norm(x, w_norm, eps)
    scores = norm_linear(x, w_norm, w_router, eps) if few else linear(normed, w_router)
    ids, weights = softmax_router(scores, active, renormalise)
    gain = w_norm if few else None
    return _experts(normed, ids, weights, w_gate, w_up, w_down, 0, gain, eps, residual=x)


def _experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    start: int,
    gain: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
) -> Tensor:
    n, d = x.shape
    y = torch.empty(n, d, dtype=x.dtype, device=x.device)
    if not n:
        return y
    here, j, _ = w_gate.shape
    active = ids.shape[1]
    total = n * active
    x, ids, weights = x.contiguous(), ids.contiguous(), weights.contiguous()
    w_gate, w_up, w_down = w_gate.contiguous(), w_up.contiguous(), w_down.contiguous()
    device = device_of(x)
    pdl = device.has_dependent_launch
    hidden = torch.empty(total, j, dtype=x.dtype, device=x.device)
    adds = residual is not None
    # A pointer stands in for what a kernel does not read.
    before = y if residual is None else residual
    if n <= MAX_ROWS:
        first, second = _row_tiles(device, d, j, x.element_size())
        row_hidden[(total, triton.cdiv(j, first.outputs))](
            x, x if gain is None else gain, ids, w_gate, w_up, hidden, start, eps,
            active, here, d, j, first.outputs, first.inputs, first.stages, gain is not None, pdl,
            **device.options(first.warps),
        )  # fmt: skip
        row_update[(n, triton.cdiv(d, second.outputs))](
            hidden, ids, weights, w_down, before, y, start,
            active, here, d, j, second.outputs, second.inputs, second.stages, adds, pdl,
            **device.options(second.warps),
        )  # fmt: skip
        return y
    assert gain is None
    order, ends = by_expert(ids, start, here)
    block = triton.next_power_of_2(here)
    first, second = _tiles(device, total // here, x.element_size())
    tiles = total // first.rows + here
    expert_hidden[(triton.cdiv(j, first.outputs), tiles)](
        x, order, ends, w_gate, w_up, hidden,
        active, here, block, d, j, first.rows, first.outputs, first.inputs, first.stages,
        first.turned, pdl, **device.options(first.warps),
    )  # fmt: skip
    parts = torch.empty(total, d, dtype=x.dtype, device=x.device)
    expert_down[(triton.cdiv(d, second.outputs), tiles)](
        hidden, order, ends, weights, w_down, parts,
        here, block, d, j, second.rows, second.outputs, second.inputs, second.stages,
        second.turned, pdl, **device.options(second.warps),
    )  # fmt: skip
    width = min(1024, triton.next_power_of_2(d))
    expert_sum[(triton.cdiv(d, width), n)](
        parts, before, ids, y, start,
        active, here, d, width, adds, pdl, **device.options(4),
    )  # fmt: skip
    return y


def _row_tiles(device: Device, d: int, j: int, itemsize: int) -> tuple[Tile, Tile]:
    """Return the tiles of both products of assignments one by one: whole rows, if they fit."""
    widest = 2048 if itemsize <= 2 else 1024
    stages = min(4, device.max_stages)

    def inputs(size: int) -> int:
        """Return the largest power of two that divides a row, or one that covers it."""
        even = size & -size
        return min(widest, even if even >= 1024 else triton.next_power_of_2(size))

    return Tile(1, 2, inputs(d), stages), Tile(1, 4, inputs(j), stages)


def _tiles(device: Device, mean: int, itemsize: int) -> tuple[Tile, Tile]:
    """Return the tiles of both products for a `mean` number of assignments an expert."""
    if itemsize > 2:
        stages = min(2, device.max_stages)
        rows = 16 if mean <= 16 else 32
        return Tile(rows, 32, 32, stages), Tile(rows, 32, 32, stages)
    stages = min(3, device.max_stages)
    if mean <= 16:  # bound by the bytes of the matrices: deep pipelines
        stages = min(4, device.max_stages)
        return Tile(16, 64, 128, stages), Tile(16, 64, 128, stages)
    if mean <= 32:
        return Tile(32, 64, 128, stages), Tile(32, 64, 128, stages)
    if mean <= 64:
        return Tile(64, 64, 64, stages), Tile(64, 64, 64, stages)
    return Tile(128, 128, 64, stages, 8), Tile(128, 128, 64, stages, 8)
