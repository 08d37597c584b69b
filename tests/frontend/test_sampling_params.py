# SPDX-License-Identifier: MIT
import math

import pytest

from tokenspeed_core.sampling_params import SamplingError, SamplingParams

NUMBERS = ["temperature", "top_p"]
INTEGERS = ["top_k", "max_tokens", "seed"]


@pytest.mark.parametrize("field", NUMBERS + INTEGERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -(2**70), 2**70, "1", True, [1]])
def test_values_that_cannot_be_served_name_the_field(field: str, value: object) -> None:
    with pytest.raises(SamplingError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.parameter == field
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.01),
        ("temperature", -0.1),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("top_k", 1.5),
        ("max_tokens", 0),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", ["x"] * 17),
        ("stop", "x" * 257),
        ("stop", [5]),
        ("stop", 5),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [2**31]),
        ("stop_token_ids", [1.0]),
        ("stop_token_ids", list(range(65))),
        ("ignore_eos", 1),
        ("logprobs", 5),
    ],
)
def test_out_of_range(field: str, value: object) -> None:
    with pytest.raises(SamplingError, match=f"^{field}"):
        SamplingParams(**{field: value})


def test_edges_are_accepted() -> None:
    params = SamplingParams(
        temperature=0,
        top_p=1e-9,
        top_k=2**31 - 1,
        max_tokens=1,
        seed=-(2**63),
        stop="x" * 256,
        stop_token_ids=[0, 2**31 - 1],
    )
    assert params.stop == ("x" * 256,)
    assert params.drawn_seed() == 2**63
    assert SamplingParams(seed=2**64 - 1).drawn_seed() == 2**64 - 1


def test_a_missing_seed_is_drawn_anew() -> None:
    params = SamplingParams()
    assert len({params.drawn_seed() for _ in range(20)}) == 20
    assert SamplingParams(seed=5).drawn_seed() == 5


def test_unknown_parameters_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="length_penalty"):
        SamplingParams(length_penalty=1.0)
