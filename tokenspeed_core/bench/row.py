# SPDX-License-Identifier: MIT
"""One measurement, and what a peer took for the same work on the same card."""

import json
from collections.abc import Sequence
from statistics import median

import attrs

PEER = "vllm-0.26.0"
_PEER_CARD = "NVIDIA H100 80GB HBM3"

# Milliseconds: a step of decode, or the time to the first token.
_PEER_MS = {
    ("qwen3-0.6b", "decode", "batch 1, ctx 512"): 2.26,
    ("qwen3-0.6b", "decode", "batch 16, ctx 512"): 2.80,
    ("qwen3-0.6b", "decode", "batch 64, ctx 512"): 3.86,
    ("qwen3-0.6b", "decode", "batch 256, ctx 512"): 8.84,
    ("qwen3-8b", "decode", "batch 1, ctx 1024"): 6.89,
    ("qwen3-8b", "decode", "batch 8, ctx 1024"): 7.48,
    ("qwen3-8b", "decode", "batch 32, ctx 1024"): 8.72,
    ("qwen3-8b", "decode", "batch 64, ctx 1024"): 10.9,
    ("qwen3-8b", "decode", "batch 128, ctx 1024"): 14.2,
    ("qwen3-8b", "decode", "batch 256, ctx 1024"): 22.6,
    ("qwen3-8b", "decode", "batch 1, ctx 16384"): 7.59,
    ("qwen3-8b", "decode", "batch 16, ctx 16384"): 19.4,
    ("qwen3-8b", "decode", "batch 1, ctx 100000"): 11.7,
    ("qwen3-8b", "decode", "batch 4, ctx 65536"): 18.7,
    ("qwen3-8b", "shared", "batch 32, prefix 16384, own 512"): 18.3,
    ("qwen3-8b", "prefill", "512 tokens"): 16.7,
    ("qwen3-8b", "prefill", "2048 tokens"): 55.8,
    ("qwen3-8b", "prefill", "8192 tokens"): 224.0,
    ("qwen3-8b", "prefill", "30000 tokens"): 1140.0,
    ("qwen3-8b", "warm", "16384 cached, 700 new"): 45.9,
    ("qwen3-8b", "warm", "65536 cached, 700 new"): 98.0,
    ("qwen3-8b", "warm", "100000 cached, 700 new"): 154.0,
    ("qwen3-8b", "warm", "100000 cached, 64 new"): 55.0,
    ("qwen3-30b-a3b", "decode", "batch 1, ctx 1024"): 4.74,
    ("qwen3-30b-a3b", "decode", "batch 8, ctx 1024"): 11.6,
    ("qwen3-30b-a3b", "decode", "batch 32, ctx 1024"): 21.6,
    ("qwen3-30b-a3b", "decode", "batch 64, ctx 1024"): 25.5,
    ("qwen3-30b-a3b", "decode", "batch 128, ctx 1024"): 29.3,
    ("qwen3-30b-a3b", "prefill", "8192 tokens"): 168.0,
    ("qwen3-8b", "agentic", "32 sessions, 8 turns"): 19404.0,
    ("qwen3-8b", "throughput", "128 requests, 1024 in, 128 out"): 5171.0,
    ("qwen3-30b-a3b", "throughput", "128 requests, 1024 in, 128 out"): 7011.0,
    ("qwen3-30b-a3b", "agentic", "32 sessions, 8 turns"): 31950.0,
    ("deepseek-v2-lite", "decode", "batch 1, ctx 1024"): 3.95,
    ("deepseek-v2-lite", "decode", "batch 1, ctx 16384"): 4.38,
}


@attrs.frozen
class Row:
    """A result: the median of several runs, and their spread (largest less smallest)."""

    model: str
    card: str
    bench: str
    case: str
    metric: str
    unit: str
    ours: float
    spread: float
    peer: float | None = None
    peer_name: str | None = None
    floor: float | None = None  # by arithmetic: bytes and operations at the card's rates

    @classmethod
    def of(
        cls,
        model: str,
        card: str,
        bench: str,
        case: str,
        metric: str,
        samples: Sequence[float],
        floor: float | None = None,
        compared: bool = True,
    ) -> "Row":
        """Return the row of samples in milliseconds; `compared` with a peer on the same card."""
        known = _PEER_MS.get((model, bench, case)) if compared and card == _PEER_CARD else None
        return cls(
            model=model,
            card=card,
            bench=bench,
            case=case,
            metric=metric,
            unit="ms",
            ours=median(samples),
            spread=max(samples) - min(samples),
            peer=known,
            peer_name=None if known is None else PEER,
            floor=floor,
        )

    def json(self) -> str:
        """Return the row as one JSON object."""
        values = attrs.asdict(self)
        return json.dumps(
            {key: round(x, 4) if isinstance(x, float) else x for key, x in values.items()}
        )
