# SPDX-License-Identifier: MIT
"""TokenSpeed: an LLM inference engine for agentic workloads.

Names are imported on first use, so that `tokenspeed_core.sdk` and the command line never wait for
torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_llm import AsyncLLM
    from .completion import Completion, TextDelta, Usage
    from .config import EngineConfig
    from .embedding import Embedding
    from .ipc.messages import SessionAction
    from .llm import LLM
    from .sampling_params import SamplingParams
    from .sdk import Client, EngineLostError, RejectedError
    from .session import Session
    from .urgency import Urgency

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "Client",
    "Completion",
    "Embedding",
    "EngineConfig",
    "EngineLostError",
    "RejectedError",
    "SamplingParams",
    "Session",
    "SessionAction",
    "TextDelta",
    "Urgency",
    "Usage",
    "__version__",
]

_MODULES = {
    "LLM": "llm",
    "AsyncLLM": "async_llm",
    "Client": "sdk",
    "Completion": "completion",
    "Embedding": "embedding",
    "EngineConfig": "config",
    "EngineLostError": "sdk",
    "RejectedError": "sdk",
    "SamplingParams": "sampling_params",
    "Session": "session",
    "SessionAction": "ipc.messages",
    "TextDelta": "completion",
    "Urgency": "urgency",
    "Usage": "completion",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
