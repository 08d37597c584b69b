# SPDX-License-Identifier: MIT
"""What a row of a step tells of its request beside its token: log-probabilities, a hidden row."""

from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import torch
from torch import Tensor

from .ipc.details import Details


@attrs.frozen(eq=False)
class Told:
    """The likeliest tokens in the place of the sampled one, a piece of the prompt, or a row."""

    slot: int
    top_ids: Tensor | None = None  # int32 [k]
    top_logprobs: Tensor | None = None  # float32 [k]
    prompt_start: int = 0
    prompt_logprobs: Tensor | None = None  # float32 [p]
    prompt_ranks: Tensor | None = None  # int32 [p]
    prompt_top_ids: Tensor | None = None  # int32 [p,k]
    prompt_top_logprobs: Tensor | None = None  # float32 [p,k]
    hidden: Tensor | None = None  # float32 [d]

    @classmethod
    def of_row(cls, slot: int, logits: Tensor, count: int) -> "Told":
        """Return the `count` likeliest tokens of `logits[v]`."""
        values, ids = logits.float().log_softmax(-1).topk(min(count, len(logits)))
        return cls(slot, ids.int(), values)

    @classmethod
    def of_prompt(cls, slot: int, start: int, logits: Tensor, tokens: Tensor, count: int) -> "Told":
        """Return what `logits[p,v]` say of the prompt's `tokens[p]` int64, which follow them.

        `start` is the position of the first of these.
        """
        every = logits.float().log_softmax(-1)
        own = every.gather(-1, tokens[:, None])
        ranks = (every >= own).sum(-1).int()
        values, ids = every.topk(min(count, every.shape[-1]))
        return cls(
            slot,
            prompt_start=start,
            prompt_logprobs=own[:, 0],
            prompt_ranks=ranks,
            prompt_top_ids=ids.int(),
            prompt_top_logprobs=values,
        )

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Told":
        """Return this with every tensor moved."""
        columns: dict[str, Any] = attrs.asdict(self, recurse=False)
        tensors = {name: move(each) for name, each in columns.items() if isinstance(each, Tensor)}
        moved: dict[str, Any] = {**columns, **tensors}
        return Told(**moved)

    def encoded(self) -> bytes:
        """Return the details as they travel; the tensors are on the host."""
        tops = self.prompt_top_ids
        return msgspec.msgpack.encode(
            Details(
                _column(self.top_ids),
                _column(self.top_logprobs),
                self.prompt_start,
                tops.shape[1] if tops is not None else 0,
                _column(self.prompt_logprobs),
                _column(self.prompt_ranks),
                _column(tops),
                _column(self.prompt_top_logprobs),
                _column(self.hidden),
            )
        )


def _column(tensor: torch.Tensor | None) -> bytes:
    return b"" if tensor is None else tensor.contiguous().numpy().tobytes()
