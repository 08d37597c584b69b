# SPDX-License-Identifier: MIT
"""What a decode step reads of its slots, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .device import device_of

_BLOCK = 1024


@triton.jit(do_not_specialize_on_alignment=["slots", "lens"])
def slot_row(
    slots, lens, last_token, table, tokens, positions, cache_slots, blocks,
    T: tl.constexpr, S: tl.constexpr, BT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`blocks[r,T]`: BT entries of the table of a row's slot; its other columns with the first."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    t = part * BT + tl.arange(0, BT)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    slot = tl.load(slots + row).to(tl.int64)
    ids = tl.load(table + slot * T + t, mask=t < T, other=0)
    tl.store(blocks + row * T + t, ids, mask=t < T)
    if part == 0:
        position = tl.load(lens + row) - 1
        block = tl.load(table + slot * T + position // S).to(tl.int64)
        tl.store(tokens + row, tl.load(last_token + slot))
        tl.store(positions + row, position)
        tl.store(cache_slots + row, block * S + position % S)


def decode_columns(
    slots: Tensor, lens: Tensor, last_token: Tensor, table: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens, positions, cache slots and block tables; see the reference."""
    rows, width = len(slots), table.shape[1]
    tokens, positions = (torch.empty_like(lens) for _ in range(2))
    cache_slots = torch.empty(rows, dtype=torch.int64, device=lens.device)
    blocks = table.new_empty(rows, width)
    if rows:
        device = device_of(table)
        slot_row[rows, triton.cdiv(width, _BLOCK)](
            slots, lens, last_token, table, tokens, positions, cache_slots, blocks,
            width, size, _BLOCK, device.has_dependent_launch, **device.options(4),
        )  # fmt: skip
    return tokens, positions, cache_slots, blocks
