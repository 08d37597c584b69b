# SPDX-License-Identifier: MIT
"""Puts the folder of the tiny models on the path, so that these tests share `tiny.py`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "models"))
