# SPDX-License-Identifier: MIT
"""An engine's runner on dummy weights, in this process."""

import json
import tempfile
from pathlib import Path

import torch

from ..rank import load_rank
from ..runner import Runner
from .options import Options
from .shape import SHAPES


def dummy_runner(options: Options, rank: int = 0, rendezvous: str = "") -> Runner:
    """Return a rank's runner of a shape, its keys and values random: zeros would run faster."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.json"
        config.write_text(json.dumps(SHAPES[options.shape]), encoding="utf-8")
        runner = load_rank(options.engine(directory), rank, rendezvous)
    runner.randomise_caches(torch.Generator(runner.device).manual_seed(rank))
    return runner
