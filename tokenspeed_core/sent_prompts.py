# SPDX-License-Identifier: MIT
"""Prompts that the scheduler keeps for one connection, so that a next turn sends what is new."""

from collections.abc import Callable

import msgspec

from .ipc.messages import Submit, Welcome
from .known_prefixes import KnownPrefixes

MIN_BYTES = 4 * 2048  # of a shorter prompt nothing is saved
# What a prompt ends with may change when a turn follows: the generation prompt, a thinking mark.
_UNSURE_BYTES = 4 * 64


class SentPrompts:
    """The numbers under which prompts are kept, and how each of them begins.

    They hold for one connection from its Hello on.
    """

    def __init__(self) -> None:
        self._max_bytes = 0
        self.forget()

    def forget(self) -> None:
        """The connection is another, or the scheduler is."""
        self._prompts: KnownPrefixes[int] = KnownPrefixes()
        self._free: list[int] = []
        self._is_greeted = False

    def greet(self, welcome: Welcome) -> None:
        """The scheduler told what it can keep."""
        if not self._is_greeted:
            self._is_greeted = True
            self._free = list(range(welcome.kept_prompts, 0, -1))
            self._max_bytes = 4 * welcome.max_model_len

    def send(self, message: Submit, send: Callable[[Submit], bool]) -> bool:
        """Send a whole request by what is new of it; False, and nothing changed, if it cannot."""
        prompt = message.prompt
        if not (MIN_BYTES <= len(prompt) <= self._max_bytes and (self._free or self._prompts)):
            return send(message)
        known = self._prompts.longest(prompt)
        told = 0 if known is None else known.size
        if known is None and not self._free:
            known = self._prompts.oldest  # its number is another's from now on
        number = known.value if known is not None else self._free[-1]
        short = msgspec.structs.replace(
            message, prompt=prompt[told:], keep=number, kept_tokens=told // 4
        )
        if not send(short):
            return False
        if known is not None:
            self._prompts.drop(known)
        else:
            self._free.pop()
        self._prompts.add(prompt, len(prompt) - _UNSURE_BYTES, number)
        return True
