# SPDX-License-Identifier: MIT
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed_core.sharding import MeshError, parse_mesh

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@given(SIZES)
def test_ranks_and_coordinates_are_one_to_one(sizes: list[int]) -> None:
    mesh = parse_mesh(" ".join(f"a{i}={size}" for i, size in enumerate(sizes)))
    axes = mesh.expand(tuple(f"a{i}" for i in range(len(sizes))))
    assert sorted(mesh.index(rank, axes) for rank in range(mesh.num_ranks)) == list(
        range(mesh.num_ranks)
    )


@given(SIZES, st.data())
def test_groups_partition_the_ranks(sizes: list[int], data: st.DataObject) -> None:
    mesh = parse_mesh(" ".join(f"a{i}={size}" for i, size in enumerate(sizes)))
    names = [name for name, _ in mesh.factors]
    axes = tuple(data.draw(st.lists(st.sampled_from(names), unique=True)) if names else ())
    groups = mesh.groups(axes)
    assert sorted(rank for group in groups for rank in group) == list(range(mesh.num_ranks))
    for group in groups:
        assert [mesh.index(rank, axes) for rank in group] == list(range(mesh.size(axes)))


def test_factors_of_an_axis_are_major_first() -> None:
    mesh = parse_mesh("dp=2 tp=(kv=2,rep=3)")
    assert mesh.num_ranks == 12
    assert mesh.expand(("tp",)) == ("kv", "rep")
    assert mesh.group(("kv", "rep")) == "tp"
    assert mesh.group(("dp", "kv")) == "dp+kv"
    assert mesh.index(10, ("kv",)) == 1
    assert mesh.index(10, ("rep",)) == 1
    assert mesh.groups(("rep",))[0] == (0, 1, 2)
    assert str(mesh) == "dp=2 tp=(kv=2,rep=3)"


def test_axes_of_size_one_vanish_but_keep_their_name() -> None:
    mesh = parse_mesh("dp=1 tp=(kv=2,rep=1)")
    assert mesh.expand(("dp", "tp", "rep")) == ("kv",)
    assert mesh.num_ranks == 2


def test_an_unknown_axis_is_refused_with_those_known() -> None:
    with pytest.raises(MeshError, match=r"'ep' is not in mesh 'tp=2'.*Write ep=1"):
        parse_mesh("tp=2").expand(("ep",))


@pytest.mark.parametrize(
    "text", ["tp", "tp=0", "tp=two", "tp=2 tp=2", "tp=(kv=2,2)", "tp=2 dp=(tp=2,x=2)"]
)
def test_malformed_meshes_are_refused(text: str) -> None:
    with pytest.raises(MeshError):
        parse_mesh(text)
