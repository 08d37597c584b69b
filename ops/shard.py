# SPDX-License-Identifier: MIT
"""A rank's own part of a Replicated value, and its share in a sum that makes it."""

import torch
from torch import Tensor

from ..sharding.op import register_rule
from ..sharding.rule import rule


# Only compiled programs call this, so its rule is never asked for a placement.
@register_rule(rule("... -> ..."))
def shard(x: Tensor, place: int, ways: int, dim: int) -> Tensor:
    """Return part `place` of `ways` equal parts of `x` along `dim`, as a view.

    Raises:
        ValueError: the dim does not divide; a step's tokens must be padded to a multiple.
    """
    size, rest = divmod(x.shape[dim], ways)
    if rest:
        raise ValueError(f"dim {dim} of size {x.shape[dim]} does not divide into {ways} shards")
    return x.narrow(dim, place * size, size)


# As above.
@register_rule(rule("... -> ..."))
def own(x: Tensor, place: int) -> Tensor:
    """Return `x` on the first rank, zeros on the others: a sum that one rank adds to alone."""
    return x if place == 0 else torch.zeros_like(x)
