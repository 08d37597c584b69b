# SPDX-License-Identifier: MIT
"""Small traces, written as files."""

import json
from pathlib import Path
from typing import Any

import attrs
from hypothesis import strategies as st

from tokenspeed_core.scheduler._scheduler import Trace
from tokenspeed_core.simulation.deployment import Deployment
from tokenspeed_core.simulation.device_model import CARDS, DeviceModel
from tokenspeed_core.simulation.model_shape import MODELS
from tokenspeed_core.trace import load_trace

BLOCK = 16
SAMPLE = Path(__file__).parent.parent / "data" / "agent_traces_sample.jsonl.gz"
H100 = DeviceModel(MODELS["qwen3-8b"], CARDS["h100"])


@attrs.frozen
class Turn:
    """A request: what it keeps of the one before, and new tokens behind it."""

    kept: int  # blocks
    new: int  # tokens
    output: int
    pause: float
    stop: str = "tool_use"


def conversation(
    turns: list[Turn], *, tools: int = 0, system: int = 0, name: str = ""
) -> dict[str, Any]:
    """A line of a trace file; shared prefixes count as part of the first turn's new tokens."""
    rows: list[list[Any]] = []
    before = fresh = 0
    for turn in turns:
        kept = min(turn.kept, before)
        tokens = kept * BLOCK + max(turn.new, 1)
        before = tokens // BLOCK
        tail = [[fresh, before - kept]] if before > kept else []
        fresh += before - kept
        rows.append([0.0, tokens, turn.output, kept, tail, 1.0, turn.pause, turn.stop])
    return {
        "id": name,
        "tool_tokens": tools,
        "system_tokens": system,
        "block": BLOCK,
        "rows": rows,
    }


def write(lines: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def load(lines: list[dict[str, Any]], path: Path) -> Trace:
    return load_trace(write(lines, path), max_context=1 << 20)[0]


turns = st.builds(
    Turn,
    kept=st.integers(0, 12),
    new=st.integers(1, 100),
    output=st.integers(0, 20),
    pause=st.floats(0, 100),
    stop=st.sampled_from(["tool_use", "end_turn", ""]),
)
conversations = st.builds(
    conversation,
    st.lists(turns, min_size=1, max_size=6),
    tools=st.sampled_from([0, 32, 64]),
    system=st.sampled_from([0, 16]),
)
files = st.lists(conversations, min_size=1, max_size=6)


def deployment(**changes: Any) -> Deployment:
    given: dict[str, Any] = {
        "device": H100,
        "pool_tokens": 1 << 20,
        "block_size": BLOCK,
        "max_running": 8,
        "max_step_tokens": 64,
    }
    return Deployment(**{**given, **changes})
