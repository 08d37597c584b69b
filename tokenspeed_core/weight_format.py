# SPDX-License-Identifier: MIT
"""In what a rank keeps its matrices: as they are, or in eight bits with scales."""

from torch import Tensor

from .kernels.float8 import Float8Matrix
from .sharding.storage import Pack

PLAIN, FP8, FP8_BLOCK, FP8_TENSOR = "plain", "fp8", "fp8-block", "fp8-tensor"
_BLOCK = 128


def formatted(pack: Pack, tensor: Tensor, form: str) -> Tensor | Float8Matrix:
    """Return a pack in a format; only the matrices of layers' projections have another than plain.

    Scales are those of each output, of blocks of 128 x 128, or one of the whole pack.  Embeddings,
    the head, routers and experts stay as they are.
    """
    if form == PLAIN or not _is_projection(pack):
        return tensor
    rows, columns = pack.shape
    sizes = {FP8: (1, columns), FP8_BLOCK: (_BLOCK, _BLOCK), FP8_TENSOR: (rows, columns)}
    return Float8Matrix.of(tensor, sizes[form])


def _is_projection(pack: Pack) -> bool:
    multiplied = all("(" in member.pattern for member in pack.members)
    in_layer = pack.name.startswith("layers.")
    return multiplied and in_layer and not pack.name.endswith("router")
