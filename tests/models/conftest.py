# SPDX-License-Identifier: MIT
"""Puts this folder on the path, so that tests share `tiny.py`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
