# SPDX-License-Identifier: MIT
"""What a bench of the runner is told."""

import attrs

from ..config import EngineConfig
from .shape import SHAPES


class ShapeError(ValueError):
    """No shape has this name."""


@attrs.frozen
class Options:
    """Which bench on which shape, and how the engine runs it; `most` cases, all if it is 0."""

    bench: str
    shape: str
    device: str = "auto"
    blocks: int = 0
    most: int = 0
    graphs: bool = True
    tp: int = 1
    layout: str = ""
    kv_cache: str = "auto"
    weights: str = "auto"
    decode_stretch: float = 1.5

    def __attrs_post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ShapeError(
                f"no shape is called {self.shape!r}; known: {', '.join(sorted(SHAPES))}"
            )

    def engine(self, directory: str) -> EngineConfig:
        """Return the engine that runs the shape, whose config.json is in `directory`.

        Raises:
            ConfigError: the options contradict each other.
        """
        return EngineConfig(
            model=directory,
            load_format="dummy",
            device=self.device,
            max_running=256,
            num_blocks=self.blocks,
            tp=self.tp,
            layout=self.layout,
            kv_cache=self.kv_cache,
            weights=self.weights,
            decode_stretch=self.decode_stretch,
        )

    @property
    def name(self) -> str:
        """The shape, and what differs from one rank in bfloat16."""
        spread = self.layout or (f"tp={self.tp}" if self.tp > 1 else "")
        kept = f"kv={self.kv_cache}" if self.kv_cache != "auto" else ""
        form = f"weights={self.weights}" if self.weights != "auto" else ""
        pace = f"stretch={self.decode_stretch:g}" if self.decode_stretch != 1.5 else ""
        return " ".join(filter(None, (self.shape, spread, kept, form, pace)))
