# SPDX-License-Identifier: MIT
"""The versioned envelope of cache hints that orchestrators put on requests (`kv_hints`).

Field names are those of vLLM's KvHintsEnvelope and SGLang's KvHints, protocol version 0.1.  Actions
that are not known here, or of another version, do nothing.
"""

from typing import Any

import msgspec

from ..ipc.messages import SessionAction
from ..session import Hint

PROTOCOL = "0."
ACTIONS = {
    "demote": SessionAction.DEMOTE,
    "prefetch": SessionAction.PREFETCH,
    "release": SessionAction.RELEASE,
    "retain": SessionAction.RETAIN,
    "end": SessionAction.END,
    "tool_call": SessionAction.TOOL_CALL,
    "human": SessionAction.HUMAN,
}


class KvHintAction(msgspec.Struct, frozen=True, kw_only=True):
    """One action; `payload.ttl_ms` says how long it holds."""

    action_type: str  # "retain", or with a prefix: "kv.retain"
    action_id: str = ""
    action_version: str = "0.1"
    payload: dict[str, Any] = {}


class KvHints(msgspec.Struct, frozen=True, kw_only=True):
    """The envelope."""

    protocol_version: str
    message_id: str = ""
    actions: list[KvHintAction] = []

    def hints(self) -> tuple[Hint, ...]:
        """Return what this release understands of it.

        Raises:
            SessionError: a time to live is no number of milliseconds.
        """
        if not self.protocol_version.startswith(PROTOCOL):
            return ()
        found = []
        for action in self.actions:
            kind = ACTIONS.get(action.action_type.rpartition(".")[2].lower())
            if kind is not None:
                ttl_ms = action.payload.get("ttl_ms", 0)
                found.append(Hint(kind, ttl_ms if type(ttl_ms) is int else -1))
        return tuple(found)
