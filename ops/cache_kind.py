# SPDX-License-Identifier: MIT
"""What the cache of a layer keeps of the tokens before a position."""

import enum


class CacheKind(enum.Enum):
    """Declared by each cache class as `keeps`; it decides which block table its layers read."""

    FULL = "full"  # every token, in blocks of a fixed number of tokens
    WINDOW = "window"  # the last `span` tokens, in such blocks; the class has an int field `span`
    STATE = "state"  # one state after all tokens, in a block of its own
