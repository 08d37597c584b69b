# SPDX-License-Identifier: MIT
"""The shaping of slots' logits, with what it must know of the tokens before."""

from collections.abc import Sequence

import attrs
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .ipc.shaping import Shaping
from .ops.shaping import above, penalised, without_end

_decoder = msgspec.msgpack.Decoder(Shaping)


class Shaper:
    """Shapes one slot's logits; nothing is read back from the device."""

    def __init__(self, shaping: bytes, outputs: NDArray[np.int32]) -> None:
        self._rules = _decoder.decode(shaping)
        before = np.frombuffer(self._rules.outputs, np.int32)
        self._outputs = np.concatenate((before, outputs))
        self._num_outputs = len(self._outputs)
        self._state: _State | None = None

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
        if self._num_outputs < rules.min_tokens and len(state.ends):
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

    def take(self, token: Tensor) -> None:
        """Remember the token `[1]` that was sampled; -1 for none."""
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


@attrs.frozen
class Shapers:
    """The rows of a step that are shaped, by their place among those that sample."""

    rows: Sequence[tuple[int, Shaper]] = ()

    def __bool__(self) -> bool:
        return bool(self.rows)

    def shaped(self, logits: Tensor, temperature: Tensor) -> Tensor:
        """Return float32 `logits[m,v]` with the rows shaped; `temperature[m]` is on the host."""
        if not self.rows:
            return logits
        result = logits.clone()
        for row, shaper in self.rows:
            result[row] = shaper.shaped(logits[row], float(temperature[row]))
        return result

    def take(self, tokens: Tensor) -> None:
        """Remember the sampled `tokens[m]`."""
        for row, shaper in self.rows:
            shaper.take(tokens[row : row + 1])

    def own_logprobs(self, logits: Tensor, tokens: Tensor, logprobs: Tensor) -> Tensor:
        """Return `logprobs[m]` with those of shaped rows as of the model's `logits[m,v]`."""
        for row, _ in self.rows:
            own = torch.log_softmax(logits[row].float(), 0)
            chosen = own[tokens[row : row + 1].long().clamp(min=0)]
            logprobs[row] = torch.where(logprobs[row].isnan(), logprobs[row], chosen[0])
        return logprobs


NO_SHAPERS = Shapers()
