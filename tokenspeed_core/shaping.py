# SPDX-License-Identifier: MIT
"""What sampling parameters ask to be done to the logits, in the wire's form."""

from collections.abc import Sequence

import msgspec

from .ipc.codec import float32_column, int32_column
from .ipc.shaping import Shaping
from .sampling_params import SamplingParams
from .tokenizer import Tokenizer

_NONE = Shaping()
_FOREVER = 2**31 - 1


def shaping(
    params: SamplingParams,
    prompt: Sequence[int],
    ends: Sequence[int],
    tokenizer: Tokenizer,
    grammar: str = "",
) -> bytes:
    """Return an encoded `Shaping`, empty if the logits stay as they are.

    `ends` are the ids that end the request, `grammar` names a compiled one.  A bad word is banned
    at the beginning of a text and after a space.
    """
    # An answer ends with its grammar; to ignore ends is to go on for as long as that allows.
    min_tokens = _FOREVER if grammar and params.ignore_eos else params.min_tokens
    words = {
        tuple(tokenizer.encode(text, add_special=False))
        for word in params.bad_words
        for text in (word, " " + word)
    }
    asked = Shaping(
        min_p=float(params.min_p),
        presence=float(params.presence_penalty),
        frequency=float(params.frequency_penalty),
        repetition=float(params.repetition_penalty),
        min_tokens=min_tokens,
        ends=int32_column(ends) if min_tokens else b"",
        bias_ids=int32_column([id for id, _ in params.logit_bias]),
        biases=float32_column([value for _, value in params.logit_bias]),
        bad_words=[int32_column(word) for word in sorted(words) if word],
        prompt_ids=int32_column(sorted(set(prompt))) if params.repetition_penalty != 1 else b"",
        top=params.top_logprobs,
        prompt=int32_column(prompt) if params.prompt_logprobs is not None else b"",
        prompt_top=params.prompt_logprobs or 0,
        grammar=grammar,
    )
    return b"" if asked == _NONE else msgspec.msgpack.encode(asked)


def resumed(shaping: bytes, outputs: bytes) -> bytes:
    """Return the shaping of a request whose `outputs` (an i32 column) have joined its prompt."""
    if not shaping:
        return b""
    rules = msgspec.msgpack.decode(shaping, type=Shaping)
    more = msgspec.structs.replace(rules, outputs=rules.outputs + outputs)
    return msgspec.msgpack.encode(more)
