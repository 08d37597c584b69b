# SPDX-License-Identifier: MIT
"""The numbers that messages carry, by name; none ever changes its meaning."""

import enum


class Role(enum.IntEnum):
    """What a process that says Hello is."""

    FRONTEND = 0
    WORKER = 1


class FinishReason(enum.IntEnum):
    """Why a request produces no further token; NONE while it runs."""

    NONE = 0
    STOP = 1  # a stop id was sampled; the id itself is delivered
    LENGTH = 2  # max_tokens or the model's length was reached
    ABORT = 3  # the frontend asked
    WORKER_LOST = 4  # the workers died under it; the client may retry
    NUMERIC = 5  # NaN or infinity in the logits of this request alone
    NO_TOKEN = 6  # its grammar and its bans together leave no token


class GroupKind(enum.IntEnum):
    """What a block group keeps of the tokens before it, and so from where a prefix can resume."""

    FULL = 0  # every token: attention over the whole context, latent attention
    WINDOW = 1  # the last `span` tokens: sliding-window attention
    STATE = 2  # one state after all tokens, with snapshots every `span` tokens: linear attention


class SessionAction(enum.IntEnum):
    """What a frontend knows about the future of a session's cache."""

    END = 1  # it will not come back
    TOOL_CALL = 2  # its last answer called a tool: it is back within seconds
    HUMAN = 3  # its last answer went to a person: it is back within minutes, or not
    RETAIN = 4  # keep its blocks if possible, for ttl_ms
    DEMOTE = 5  # evict its blocks before others (to the host tier, if there is one)
    PREFETCH = 6  # it is about to come back: load its blocks from the host tier
    RELEASE = 7  # take RETAIN back


class RefusalCode(enum.IntEnum):
    """Why a connection or a request was turned away."""

    VERSION = 1
    TOKEN = 2
    RANK = 3
    SHAPE = 4  # ranks disagree about block count, block size or program
    MALFORMED = 5
    DUPLICATE = 6
    EMPTY_PROMPT = 7
    TOO_LONG = 8
    TOKEN_ID = 9
    PARAMETER = 10
    QUEUE_FULL = 11
    NEVER_FITS = 12
    DRAINING = 13
