# SPDX-License-Identifier: MIT
"""What a user gets of an embedder: a vector, and what it cost."""

import attrs
import numpy as np
from numpy.typing import NDArray

from .completion import Usage
from .pooling import Pooling

Vector = NDArray[np.float32]


@attrs.frozen(eq=False)
class Embedding:
    """The embedding of one text: float32 [d]."""

    values: Vector
    usage: Usage


def vector_of(hidden: bytes, pooling: Pooling, dimensions: int | None) -> Vector:
    """Return the embedding that a hidden row, an f32 column, stands for.

    Its first `dimensions` values, None for all, divided by max(length, 1e-12) where the model
    normalises, as sentence-transformers does.
    """
    kept = np.frombuffer(hidden, np.float32)[:dimensions]
    return kept / np.maximum(np.linalg.norm(kept), 1e-12) if pooling.normalises else kept
