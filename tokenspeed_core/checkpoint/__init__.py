# SPDX-License-Identifier: MIT
"""Reading of model weights and their configuration, a slice at a time."""

from .checkpoint import Checkpoint, CheckpointError
from .open_checkpoint import open_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint"]
