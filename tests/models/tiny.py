# SPDX-License-Identifier: MIT
"""Tiny random models with an oracle, and the batches that feed them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from tokenspeed_core.models import Family, family_of
from tokenspeed_core.ops import Batch
from tokenspeed_core.sharding import Layout, leaves

BLOCK = 4
SIZES = dict(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
    rms_norm_eps=1e-5,
    max_position_embeddings=256,
    tie_word_embeddings=False,
)
ROPE3 = dict(
    rope_type="llama3",
    rope_theta=1e4,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
LAYOUTS = {
    "tp1": Layout("tp=1"),
    "tp2": Layout("tp=2"),
    "tp4": Layout("tp=4"),
    "sp2": Layout("tp=2", types={"Hidden": "n@tp d"}),
    "sp4": Layout("tp=4", types={"Hidden": "n@tp d"}),
    "dp-tp": Layout("dp=2 tp=2"),
    "dp-sp": Layout("dp=2 tp=2", types={"Hidden": "n@dp+tp d"}),
    "whole-vocabulary": Layout("tp=4", place={"v": ""}, types={"Hidden": "n@tp d"}),
    "whole-heads": Layout("tp=4", place={"k": ""}),
    "factored": Layout("tp=(kv=4,rep=2)", place={"k": "kv", "g": "rep"}),
    "factored-sp": Layout(
        "tp=(kv=2,rep=2)", place={"k": "kv", "g": "rep"}, types={"Hidden": "n@tp d"}
    ),
}
CASES: dict[str, dict[str, Any]] = {
    "gqa": {},
    "tied-llama3": dict(tie_word_embeddings=True, rope_parameters=ROPE3),
    "mha-biases": dict(num_key_value_heads=8, attention_bias=True, mlp_bias=True),
    "gqa-biases": dict(attention_bias=True, mlp_bias=True),
    "wide-head-linear": dict(
        head_dim=16, rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0)
    ),
}


@attrs.frozen(eq=False)
class Tiny:
    """A random model: the oracle, and the same weights as parameters of ours."""

    oracle: Any
    family: Family[Any]
    config: Any
    params: dict[str, Tensor]
    tokens: tuple[Tensor, ...]

    def expected(self, row: int) -> Tensor:
        """Return the oracle's logits `[tokens, v]` of one request."""
        with torch.no_grad():
            result: Tensor = self.oracle(self.tokens[row][None]).logits[0]
        return result


def make_tiny(changes: dict[str, Any], dtype: torch.dtype = torch.float32) -> Tiny:
    """Return a tiny Llama."""
    from transformers import LlamaConfig

    return tiny_of(LlamaConfig(**{**SIZES, **changes}), dtype)


def tiny_of(
    config: Any, dtype: torch.dtype = torch.float32, lengths: tuple[int, ...] = (19, 13)
) -> Tiny:
    """Return a random model of a transformers config, and requests of these lengths."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    config._attn_implementation = config._experts_implementation = "eager"
    oracle = AutoModelForCausalLM.from_config(config).eval().to(dtype)
    randomise(oracle)
    family = family_of(type(oracle).__name__)
    ours = family.config(config.to_dict())
    state = oracle.state_dict()
    params = {}
    declared = dict(leaves(family.params(ours, dtype)))
    for path, source in family.hf(ours).items():
        sizes = dict(zip(declared[path].spec.names, declared[path].sizes, strict=True))
        found = source.among(state)
        params[path] = found.whole(lambda name, window: state[name][window], sizes)
    params.update(family.derived(ours))
    tokens = tuple(torch.randint(0, config.vocab_size, (length,)) for length in lengths)
    return Tiny(oracle, family, ours, params, tokens)


def randomise(oracle: Any) -> None:
    """Draw every parameter, so that logits are of order one and nothing is zero or equal."""
    learned = [*oracle.named_parameters(), *oracle.named_buffers()]
    with torch.no_grad():
        for name, tensor in learned:
            if "inv_freq" in name:
                continue
            if tensor.dim() == 1 or name.endswith("bias"):
                # Norms start at 1, or at 0 where 1 is added to them.
                tensor.normal_(mean=float(tensor.flatten()[0]) if "norm" in name else 0.0, std=0.3)
            else:
                # Experts of some families are stored [experts, in, out].
                inner = tensor.shape[
                    -2
                    if getattr(oracle.config, "model_type", "") == "gpt_oss" and tensor.dim() == 3
                    else -1
                ]
                tensor.normal_(std=inner**-0.5 * (3 if "embed" in name else 1))


def batch_of(
    rows: Sequence[tuple[Tensor, int, int]], every: bool = False, multiple: int = 1
) -> Batch:
    """Return the batch of rows (all tokens so far, how many are cached, index of the request).

    Request i owns blocks `1 + 8 i` onwards; tokens are padded to a multiple.
    """
    tokens, positions, slots, starts, wanted = [], [], [], [0], []
    tables = torch.zeros(len(rows), 8, dtype=torch.int32)
    for row, (ids, cached, request) in enumerate(rows):
        tables[row] = torch.arange(8) + 1 + 8 * request
        for position in range(cached, len(ids)):
            tokens.append(int(ids[position]))
            positions.append(position)
            slots.append(int(tables[row, position // BLOCK]) * BLOCK + position % BLOCK)
        starts.append(len(tokens))
        wanted += range(starts[-2], starts[-1]) if every else [starts[-1] - 1]
    short = -len(tokens) % multiple
    for column in (tokens, positions, slots):
        column.extend([0] * short)
    queries = [len(ids) - cached for ids, cached, _ in rows]
    int32 = torch.int32
    return Batch(
        tokens=torch.tensor(tokens, dtype=int32),
        positions=torch.tensor(positions, dtype=int32),
        cache_slots=torch.tensor(slots),
        query_starts=torch.tensor(starts, dtype=int32),
        context_lens=torch.tensor([len(ids) for ids, _, _ in rows], dtype=int32),
        block_tables=tables,
        logit_rows=torch.tensor(wanted),
        state_blocks=torch.tensor([1 + request for _, _, request in rows]),
        num_rows=len(rows),
        num_decode_rows=sum(count == 1 for count in queries),
        max_query=max(queries),
        max_context=max(len(ids) for ids, _, _ in rows),
    )


def conversation(
    tiny: Tiny, step: Callable[[Batch], Tensor], multiple: int = 1, cut: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """Return (ours, oracle's) logits of two prefills, then 8 decode steps of both requests.

    With a `cut`, the first request's prefill is that many tokens alone, then the rest.
    """
    found = []
    expected = [tiny.expected(row) for row in range(2)]
    lengths = [len(ids) - 8 for ids in tiny.tokens]
    if cut:
        logits = step(batch_of([(tiny.tokens[0][:cut], 0, 0)], every=True, multiple=multiple))
        found.append((logits, expected[0][:cut]))
    rows = [
        (ids[:length], 0 if i else cut, i)
        for i, (ids, length) in enumerate(zip(tiny.tokens, lengths, strict=True))
    ]
    logits = step(batch_of(rows, every=True, multiple=multiple))
    found.append((logits, torch.cat([expected[0][cut : lengths[0]], expected[1][: lengths[1]]])))
    for done in range(8):
        rows = [
            (ids[: length + done + 1], length + done, i)
            for i, (ids, length) in enumerate(zip(tiny.tokens, lengths, strict=True))
        ]
        logits = step(batch_of(rows, multiple=multiple))
        found.append(
            (logits, torch.stack([e[n + done] for e, n in zip(expected, lengths, strict=True)]))
        )
    return found


def apart(
    tiny: Tiny, one: Callable[..., Tensor], many: Callable[..., Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (one's, many's) last logits of two prefills, then of 8 decode steps.

    `one` takes both requests in one batch, `many` a batch each, padded to one size.
    """
    lengths = [len(ids) - 8 for ids in tiny.tokens]
    for done in range(9):
        rows = [
            (ids[: length + done], length + done - 1 if done else 0, request)
            for request, (ids, length) in enumerate(zip(tiny.tokens, lengths, strict=True))
        ]
        longest = max(len(ids) - cached for ids, cached, _ in rows)
        own = [batch_of([row], multiple=longest + longest % 2) for row in rows]
        yield one(batch_of(rows)), many(*own)
