# SPDX-License-Identifier: MIT
"""Puts this folder and that of the tiny models on the path: tests share `mutants`, `tiny`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent / "models"))
