# SPDX-License-Identifier: MIT
"""The shaping of slots' logits, with what it must know of the tokens before."""

from collections.abc import Sequence
from typing import NamedTuple

import attrs
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .constraint import Constraint, without
from .grammar.library import Library
from .ipc.shaping import Shaping
from .ops.shaping import above, allowed_only, penalised, without_end
from .sampled import Sampled
from .told import Told
from .upload import uploaded

NONE_ALLOWED = -2  # in place of a token

_decoder = msgspec.msgpack.Decoder(Shaping)


class Shaper:
    """Shapes one slot's logits; nothing is read back from the device but a grammar's tokens."""

    def __init__(
        self, shaping: bytes, outputs: NDArray[np.int32], library: Library | None = None
    ) -> None:
        self._rules = _decoder.decode(shaping)
        before = np.frombuffer(self._rules.outputs, np.int32)
        self._outputs = np.concatenate((before, outputs))
        self._num_outputs = len(self._outputs)
        self._state: _State | None = None
        self._constraint: Constraint | None = None
        if self._rules.grammar:
            assert library is not None, "a grammar, and nothing to open it with"
            self._constraint = Constraint(self._rules.grammar, self._outputs.tolist(), library)

    def shaped(self, logits: Tensor, temperature: float) -> Tensor:
        """Return the shaped `logits[v]`."""
        rules = self._rules
        if self._state is None:
            self._state = _State.of(rules, self._outputs, logits)
        state = self._state
        if state.bias is not None:
            logits = logits + state.bias
        for sequence in state.bad_words:
            logits = without_end(logits, state.tail, sequence)
        if self._constraint is not None:
            logits = allowed_only(logits, self._words(self._constraint, logits.device))
        elif self._num_outputs < rules.min_tokens and len(state.ends):
            logits = logits.index_fill(0, state.ends, -torch.inf)
        if rules.presence or rules.frequency or rules.repetition != 1:
            logits = penalised(
                logits,
                state.counts,
                state.known,
                rules.presence,
                rules.frequency,
                rules.repetition,
            )
        if rules.min_p > 0 and temperature > 0:
            logits = above(logits, rules.min_p, temperature)
        return logits

    def _words(self, constraint: Constraint, device: torch.device) -> Tensor:
        words = constraint.allowed()
        if self._num_outputs < self._rules.min_tokens:
            # An answer whose grammar ends before has to end.
            words = without(words, np.frombuffer(self._rules.ends, np.int32))
        return uploaded(words, device)

    @property
    def top(self) -> int:
        """How many of the likeliest tokens are told beside each sampled one."""
        return self._rules.top

    def prompt_rows(self, context: int, length: int) -> int:
        """Return how many of `length` tokens behind `context` stand before one of the prompt.

        0 unless its log-probabilities are asked.
        """
        return max(0, min(length, len(self._rules.prompt) // 4 - 1 - context))

    def told_of_prompt(self, slot: int, context: int, logits: Tensor) -> Told:
        """Return what `logits[p,v]` of the tokens behind `context` say of those that follow."""
        prompt = np.frombuffer(self._rules.prompt, np.int32).astype(np.int64)
        tokens = uploaded(prompt[context + 1 : context + 1 + len(logits)], logits.device)
        return Told.of_prompt(slot, context + 1, logits, tokens, self._rules.prompt_top)

    def follow(self, sampled: Sampled, row: int) -> None:
        """Let a grammar go on with the token of a step's row, beside what follows."""
        if self._constraint is not None:
            self._constraint.follow(sampled, row)

    def take(self, token: Tensor) -> None:
        """Remember the token `[1]` that was sampled; negative for none."""
        assert self._state is not None, "shaped comes first"
        self._num_outputs += 1
        self._state.take(token.long())


@attrs.define
class _State:
    bias: Tensor | None  # [v]
    bad_words: list[Tensor]
    ends: Tensor  # int64
    counts: Tensor  # int32 [v], of tokens generated
    known: Tensor  # bool [v], the prompt's too
    tail: Tensor  # int64, the last tokens generated

    @classmethod
    def of(cls, rules: Shaping, outputs: NDArray[np.int32], logits: Tensor) -> "_State":
        def ids(column: bytes | NDArray[np.int32]) -> Tensor:
            array = np.frombuffer(column, np.int32) if isinstance(column, bytes) else column
            return torch.from_numpy(array.astype(np.int64)).to(logits.device)

        size = logits.shape[0]
        bias = None
        if rules.bias_ids:
            values = torch.from_numpy(np.frombuffer(rules.biases, np.float32).copy())
            bias = logits.new_zeros(size)
            bias.index_add_(0, ids(rules.bias_ids), values.to(bias))
        words = [ids(word) for word in rules.bad_words]
        counts = torch.bincount(ids(outputs), minlength=size).int()
        known = counts > 0
        known.index_fill_(0, ids(rules.prompt_ids), True)
        length = max((len(word) - 1 for word in words), default=0)
        tail = torch.full((length,), -1, device=logits.device)
        last = ids(outputs[max(0, len(outputs) - length) :])
        tail = torch.cat((tail, last))[len(last) :]
        return cls(bias, words, ids(rules.ends), counts, known, tail)

    def take(self, token: Tensor) -> None:
        place = token.clamp(min=0)
        self.counts.index_add_(0, place, torch.ones_like(place, dtype=torch.int32))
        self.known.index_fill_(0, place, True)
        if len(self.tail):
            self.tail = torch.cat((self.tail[1:], token))


class PromptRows(NamedTuple):
    """Tokens of a prompt in a step, whose logits say how likely the next ones were."""

    slot: int
    shaper: Shaper
    context: int  # tokens before the first
    length: int


@attrs.frozen
class Shapers:
    """The rows of a step that are shaped, by their place among those that sample."""

    rows: Sequence[tuple[int, Shaper]] = ()
    prompts: Sequence[PromptRows] = ()
    slots: Sequence[int] = ()  # of the rows that sample

    def __bool__(self) -> bool:
        return bool(self.rows or self.prompts)

    def told(self, logits: Tensor) -> list[Told]:
        """Return what was asked to be told of `logits[m+p,v]`: sampling rows, then prompts'."""
        told = [
            Told.of_row(self.slots[row], logits[row], shaper.top)
            for row, shaper in self.rows
            if shaper.top
        ]
        at = len(self.slots)
        for slot, shaper, context, length in self.prompts:
            told.append(shaper.told_of_prompt(slot, context, logits[at : at + length]))
            at += length
        return told

    def shaped(self, logits: Tensor, temperature: Tensor) -> Tensor:
        """Return float32 `logits[m,v]` with the rows shaped; `temperature[m]` is on the host."""
        if not self.rows:
            return logits
        result = logits.clone()
        for row, shaper in self.rows:
            result[row] = shaper.shaped(logits[row], float(temperature[row]))
        return result

    def take(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """Remember and return the sampled `tokens[m]` int32.

        Where the model's own `logits[m,v]` are finite and yet no token was left, -1 becomes -2.
        """
        for row, shaper in self.rows:
            shaper.take(tokens[row : row + 1])
            was_left_none = (tokens[row] < 0) & logits[row].amax().isfinite()
            tokens[row] = torch.where(was_left_none, NONE_ALLOWED, tokens[row])
        return tokens

    def follow(self, sampled: Sampled) -> None:
        """Let grammars go on with the tokens that were sampled, beside what follows."""
        for row, shaper in self.rows:
            shaper.follow(sampled, row)

    def own_logprobs(self, logits: Tensor, tokens: Tensor, logprobs: Tensor) -> Tensor:
        """Return `logprobs[m]` with those of shaped rows as of the model's `logits[m,v]`."""
        for row, _ in self.rows:
            own = torch.log_softmax(logits[row].float(), 0)
            chosen = own[tokens[row : row + 1].long().clamp(min=0)]
            logprobs[row] = torch.where(logprobs[row].isnan(), logprobs[row], chosen[0])
        return logprobs


NO_SHAPERS = Shapers()
