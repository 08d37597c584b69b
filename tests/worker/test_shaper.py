# SPDX-License-Identifier: MIT
"""Shaped logits against their definition, token by token."""

import math

import msgspec
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed_core.ipc.codec import float32_column, int32_column
from tokenspeed_core.ipc.shaping import Shaping
from tokenspeed_core.shaper import Shaper, Shapers
from tokenspeed_core.shaping import resumed

VOCABULARY = 12
tokens = st.integers(0, VOCABULARY - 1)
rules = st.builds(
    Shaping,
    min_p=st.sampled_from([0.0, 0.1, 0.9]),
    presence=st.sampled_from([0.0, 0.5, -1.0]),
    frequency=st.sampled_from([0.0, 0.25, -1.0]),
    repetition=st.sampled_from([1.0, 2.0, 0.5]),
    min_tokens=st.integers(0, 6),
    ends=st.just(int32_column([1, 2])),
    bias_ids=st.just(int32_column([3, 4])),
    biases=st.just(float32_column([1.5, -100.0])),
    bad_words=st.lists(st.lists(tokens, min_size=1, max_size=3).map(int32_column), max_size=3),
    prompt_ids=st.lists(tokens, max_size=4, unique=True).map(int32_column),
    outputs=st.lists(tokens, max_size=3).map(int32_column),
)


def ids(column: bytes) -> list[int]:
    return np.frombuffer(column, np.int32).tolist()


def defined(
    rules: Shaping, logits: list[float], said: list[int], temperature: float
) -> list[float]:
    """Shape as the words of `Shaping` say, with no tensor."""
    x = list(logits)
    for id, bias in zip(ids(rules.bias_ids), np.frombuffer(rules.biases, np.float32), strict=True):
        x[id] += float(bias)
    for word in map(ids, rules.bad_words):
        if len(said) >= len(word) - 1 and said[len(said) - len(word) + 1 :] == word[:-1]:
            x[word[-1]] = -math.inf
    if len(said) < rules.min_tokens:
        for id in ids(rules.ends):
            x[id] = -math.inf
    for id in {*said, *ids(rules.prompt_ids)}:
        x[id] = x[id] / rules.repetition if x[id] > 0 else x[id] * rules.repetition
    for id in said:
        x[id] -= rules.frequency
    for id in set(said):
        x[id] -= rules.presence
    if rules.min_p and temperature:
        floor = max(x) + temperature * math.log(rules.min_p)
        x = [value if value >= floor else -math.inf for value in x]
    return x


@settings(max_examples=150, deadline=None)
@given(rules, st.lists(tokens, max_size=3), st.lists(tokens, max_size=5), st.integers(0, 99))
def test_each_token_is_shaped_by_those_before(
    rules: Shaping, outputs: list[int], said: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    shaping = msgspec.msgpack.encode(rules)
    history = [*ids(rules.outputs), *outputs]
    shapers = Shapers([(1, Shaper(shaping, np.array(outputs, np.int32)))])
    # the same request after a loss: its outputs have joined the prompt
    again = Shapers([(1, Shaper(resumed(shaping, int32_column(outputs)), np.empty(0, np.int32)))])
    temperature = torch.tensor([0.0, 0.7, 0.0])
    for token in said:
        logits = torch.randn(3, VOCABULARY)
        before = logits.clone()
        shaped = shapers.shaped(logits, temperature)
        assert torch.equal(logits, before)
        assert torch.equal(shaped[[0, 2]], logits[[0, 2]])
        want = torch.tensor(defined(rules, logits[1].tolist(), history, 0.7))
        torch.testing.assert_close(shaped[1], want)
        assert torch.equal(again.shaped(logits, temperature), shaped)
        for each in (shapers, again):
            each.take(torch.tensor([0, token, 0], dtype=torch.int32), logits)
        history.append(token)


def test_log_probabilities_stay_the_models_own() -> None:
    shaping = msgspec.msgpack.encode(Shaping(presence=1.0))
    shapers = Shapers([(0, Shaper(shaping, np.empty(0, np.int32)))])
    logits = torch.randn(2, VOCABULARY)
    tokens = torch.tensor([3, 4])
    told = shapers.own_logprobs(logits, tokens, torch.tensor([-9.0, -8.0]))
    assert told[1] == -8
    torch.testing.assert_close(told[0], logits.log_softmax(-1)[0, 3])
    assert shapers.own_logprobs(logits, tokens, torch.tensor([torch.nan, 0]))[0].isnan()
