# SPDX-License-Identifier: MIT
"""Model families: pure functions with placements in their types, configs, checkpoint names."""

from .checkpoint import Source
from .config import ConfigError
from .family import Family, compile_plan
from .registry import FAMILIES, family_of

__all__ = ["FAMILIES", "ConfigError", "Family", "Source", "compile_plan", "family_of"]
