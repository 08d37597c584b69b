# SPDX-License-Identifier: MIT
"""Sources: any slice of a parameter, read from the window of the file's tensor that holds it."""

import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed_core.models import Source, family_of

PATTERNS = [
    "(k g h) d -> d k g h",
    "(k h) d -> d k h",
    "d (k g h) -> k g h d",
    "v d -> v d",
    "f d -> d f",
    "(k g h) -> k g h",
    "d -> d",
    "e (two j) d -> e j d",
    "e d (j two) -> e j d",
]


@st.composite
def slices(draw: st.DrawFn) -> tuple[str, dict[str, int], dict[str, slice]]:
    pattern = draw(st.sampled_from(PATTERNS))
    names = pattern.partition("->")[2].split()
    sizes = {name: draw(st.integers(1, 4)) for name in names}
    cut = {}
    for name in names:
        start = draw(st.integers(0, sizes[name] - 1))
        cut[name] = slice(start, draw(st.integers(start + 1, sizes[name])))
    return pattern, sizes, cut


@given(slices(), st.integers(0, 1))
def test_a_slice_read_from_its_window_is_the_slice_of_the_whole(
    case: tuple[str, dict[str, int], dict[str, slice]], half: int
) -> None:
    pattern, sizes, cut = case
    source = Source("w", pattern, half)
    shape = source.shape(sizes)
    stored = torch.arange(torch.Size(shape).numel()).view(shape)
    names = pattern.partition("->")[2].split()
    spelled = pattern.replace("->", "-> two") if "two" in pattern else pattern
    known = {f: {**sizes, "two": 2}[f] for dim in source.dims() for f in dim}
    whole = rearrange(stored, spelled, **known)
    whole = whole[half] if "two" in pattern else whole
    expected = whole[tuple(cut[name] for name in names)]
    window = source.window(sizes, cut)
    assert torch.equal(source.read(stored[window], names, sizes, cut), expected)


SUMS = [
    ("(k 0+ h +5) d -> d k h", 0, 5),
    ("(k 3+ h) d -> d k h", 3, 0),
    ("d (k g 2+ h +1) -> k g h d", 2, 1),
    ("(l 4+ w o +7) d -> d l w o", 4, 7),
    ("(6+ l w o) one x -> l w o x", 6, 0),
    ("(l p +9) one x -> l p x", 0, 9),
    ("(c +2) -> c", 0, 2),
]


@st.composite
def sums(draw: st.DrawFn) -> tuple[str, int, int, dict[str, int], dict[str, slice]]:
    pattern, before, after = draw(st.sampled_from(SUMS))
    names = pattern.partition("->")[2].split()
    sizes = {name: draw(st.integers(1, 4)) for name in names}
    cut = {}
    for name in names:
        start = draw(st.integers(0, sizes[name] - 1))
        cut[name] = slice(start, draw(st.integers(start + 1, sizes[name])))
    return pattern, before, after, sizes, cut


@given(sums())
def test_a_part_of_a_sum_is_read_without_what_stands_beside_it(
    case: tuple[str, int, int, dict[str, int], dict[str, slice]],
) -> None:
    pattern, before, after, sizes, cut = case
    names = pattern.partition("->")[2].split()
    wanted = torch.randn([sizes[name] for name in names])
    words = pattern.partition("->")[0].replace("(", "( ").replace(")", " )").split()
    mark = next((word for word in words if word.endswith("+")), None)
    # The tensor of a file, made the other way round: the part, padded, with its outer factors.
    at = words.index(mark) if mark else words.index("(")
    inner = [word for word in words[at + 1 : words.index(")")] if not word.startswith("+")]
    outer = words[words.index("(") + 1 : at] if mark else []
    front = words[: words.index("(")]
    back = [word for word in words[words.index(")") + 1 :] if word != "one"]
    sides = (*front, *outer), back
    merged = rearrange(
        wanted,
        f"{' '.join(names)} -> {' '.join(sides[0])} ({' '.join(inner)}) {' '.join(back)}",
    )
    padded = torch.cat(
        [
            torch.randn([before if i == len(sides[0]) else n for i, n in enumerate(merged.shape)]),
            merged,
            torch.randn([after if i == len(sides[0]) else n for i, n in enumerate(merged.shape)]),
        ],
        dim=len(sides[0]),
    )
    stored = padded.flatten(len(front), len(sides[0]))
    stored = stored.unsqueeze(1) if " one " in pattern else stored
    source = Source("w", pattern)
    assert source.shape(sizes) == stored.shape
    assert torch.equal(source.whole(lambda name, window: stored[window], sizes), wanted)
    window = source.window(sizes, cut)
    expected = wanted[tuple(cut[name] for name in names)]
    assert torch.equal(source.read(stored[window], names, sizes, cut), expected)


def test_a_window_on_one_part_leaves_the_others_alone() -> None:
    sizes = {"l": 4, "p": 8, "d": 3}
    cut = {"l": slice(2, 3), "p": slice(0, 8), "d": slice(0, 3)}
    window = Source("w", "(l 5+ p +7) d -> d l p").window(sizes, cut)
    assert window == (slice(45, 53), slice(0, 3))
    window = Source("w", "(5+ l p +7) d -> d l p").window(sizes, cut)
    assert window == (slice(21, 29), slice(0, 3))


def test_a_shift_is_added_in_float32() -> None:
    stored = torch.tensor([2.0**-9, -1.0]).bfloat16()
    found = Source("w", "d -> d", shift=1.0).whole(lambda name, window: stored[window], {"d": 2})
    assert found.dtype == torch.float32
    assert found.tolist() == [1 + 2.0**-9, 0.0]


def test_a_shard_of_heads_reads_only_its_rows() -> None:
    source = Source("q", "(k g h) d -> d k g h")
    sizes = {"k": 8, "g": 4, "h": 16, "d": 32}
    whole = {name: slice(0, size) for name, size in sizes.items()}
    window = source.window(sizes, {**whole, "k": slice(2, 4)})
    assert window == (slice(128, 256), slice(0, 32))
    window = source.window(sizes, {**whole, "k": slice(2, 3), "g": slice(1, 3)})
    assert window == (slice(144, 176), slice(0, 32))


def test_a_rank_reads_the_tensors_of_its_own_experts_only() -> None:
    source = Source("experts.{e}.gate", "j d -> e d j")
    stored = {f"experts.{e}.gate": torch.randn(3, 5) for e in range(8)}
    seen = []

    def read(name: str, window: tuple[slice, ...]) -> torch.Tensor:
        seen.append(name)
        return stored[name][window]

    sizes = {"e": 8, "j": 3, "d": 5}
    cut = {"e": slice(4, 8), "j": slice(1, 3), "d": slice(0, 5)}
    got = source.load(read, ("e", "d", "j"), sizes, cut)
    expected = torch.stack([stored[f"experts.{e}.gate"][1:3].T for e in range(4, 8)])
    assert torch.equal(got, expected)
    assert seen == [f"experts.{e}.gate" for e in range(4, 8)]


def test_a_source_is_the_form_that_the_checkpoint_has() -> None:
    fused = Source("experts.gate_up", "e (two j) d -> e j d", 1)
    source = Source("experts.{e}.up", "j d -> e d j", other=fused)
    assert source.among({"experts.0.up"}) is source
    assert source.among({"experts.gate_up"}) is fused
    assert fused.shape({"e": 2, "j": 3, "d": 5}) == (2, 6, 5)


def test_tables_name_every_parameter_once() -> None:
    family = family_of("LlamaForCausalLM")
    config = family.config(
        dict(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=100,
            attention_bias=True,
            mlp_bias=True,
        )
    )
    from tokenspeed_core.sharding import leaves

    paths = {path for path, _ in leaves(family.params(config, torch.float32))}
    table = family.hf(config)
    assert set(table) | set(family.derived(config)) == paths
    assert len({source.name for source in table.values()}) == len(table)
