# SPDX-License-Identifier: MIT
"""An engine's runner on dummy weights, in this process."""

import json
import tempfile
from pathlib import Path

import torch

from ..config import EngineConfig
from ..rank import load_rank
from ..runner import Runner
from .shape import SHAPES


class ShapeError(ValueError):
    """No shape has this name."""


def dummy_runner(model: str, device: str, num_blocks: int = 0) -> Runner:
    """Return a runner of a shape by name, its keys and values random: zeros would run faster.

    Raises:
        ShapeError: no shape has this name.
    """
    if model not in SHAPES:
        raise ShapeError(f"no shape is called {model!r}; known: {', '.join(SHAPES)}")
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.json"
        config.write_text(json.dumps(SHAPES[model]), encoding="utf-8")
        engine = EngineConfig(
            model=directory,
            load_format="dummy",
            device=device,
            max_running=256,
            num_blocks=num_blocks,
        )
        runner = load_rank(engine, 0, "")
    runner.randomise_caches(torch.Generator(runner.device).manual_seed(0))
    return runner
