# SPDX-License-Identifier: MIT
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenspeed_core.sharding import AnnotationError, Placed, Spec, parse_spec
from tokenspeed_core.sharding.spec import Dim

NAMES = st.sampled_from(["n", "d", "k", "g", "h", "f", "v"])
AXES = st.sampled_from(["tp", "dp", "ep", "kv", "rep"])


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    axes = draw(st.lists(AXES, unique=True))
    dims = []
    for name in draw(st.lists(NAMES, unique=True, min_size=1)):
        used = [axes.pop() for _ in range(draw(st.integers(0, min(2, len(axes)))))]
        segments = draw(st.sampled_from([(), ("a", "b"), ("a", "b", "c")]))
        if any(dim.segments for dim in dims):
            segments = ()
        label = "__".join(segments) if segments else name
        dims.append(Dim(label, tuple(used), draw(st.booleans())))
    count = draw(st.integers(0, len(axes)))
    partial, varying = tuple(axes[:count]), tuple(axes[count:])
    reduce = draw(st.sampled_from(["sum", "max"])) if partial else "sum"
    return Spec(tuple(dims), partial, reduce, varying)


@given(specs())
def test_printing_and_parsing_are_inverse(spec: Spec) -> None:
    assert parse_spec(str(spec)) == spec


def test_grammar_covers_every_form() -> None:
    spec = parse_spec("~n@dp+tp (q|k|v)@kv d !max:ep ?pp")
    assert spec.dims == (
        Dim("n", ("dp", "tp"), ragged=True),
        Dim("q__k__v", ("kv",)),
        Dim("d"),
    )
    assert (spec.partial, spec.reduce, spec.varying) == (("ep",), "max", ("pp",))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("n d d", "'d'"),
        ("n@tp d@tp", "'tp'"),
        ("n@tp !tp", "'tp'"),
        ("n@", "'n@'"),
        ("n !min:tp", "'!min:tp'"),
        ("(a|)", "'(a|)'"),
        ("n, d", "'n,'"),
    ],
)
def test_malformed_specs_name_the_word(text: str, named: str) -> None:
    with pytest.raises(AnnotationError, match=r"placement|stands twice") as raised:
        parse_spec(text)
    assert named in str(raised.value)


def test_placed_remembers_where_it_was_written() -> None:
    placement = Placed[Tensor, "n d@tp", torch.float32]
    assert placement.line.path == __file__
    assert placement.dtype == torch.float32
    assert str(placement.spec) == "n d@tp"
    assert Placed[Tensor, "n"] is not Placed[Tensor, "n"], "aliases are told apart by identity"


def test_placed_refuses_a_bad_spec_with_its_line() -> None:
    with pytest.raises(AnnotationError, match=r"test_spec\.py:\d+: "):
        Placed[Tensor, "n n"]
