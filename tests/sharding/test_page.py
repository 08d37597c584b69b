# SPDX-License-Identifier: MIT
"""The ways to look at a plan: page, provenance, difference, memory, links and layout text."""

import re
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.sharding import Layout, MeshError, PlacementError, Plan
from tokenspeed_core.sharding.collective_table import collectives, table
from tokenspeed_core.sharding.difference import difference
from tokenspeed_core.sharding.explain import step_sizes
from tokenspeed_core.sharding.lanes import draw
from tokenspeed_core.sharding.layout_text import parse_layout, text_of
from tokenspeed_core.sharding.link import LINKS, Links, parse_links
from tokenspeed_core.sharding.memory import memory
from tokenspeed_core.sharding.page import page
from tokenspeed_core.sharding.program import LOCAL, Move
from tokenspeed_core.sharding.provenance import values, why

CONFIG = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    vocab_size=256,
)
TEXTS = (
    "tp=1",
    "tp=4",
    "tp=4; Hidden=n@tp d",
    "tp=(kv=2,rep=2); k:kv g:rep",
    "dp=2 tp=2; v:; Hidden=n@dp+tp d",
)
TOKENS = step_sizes(32)


def plan_of(text: str) -> Plan:
    family = family_of("LlamaForCausalLM")
    return compile_plan(
        family,
        family.config(CONFIG),
        parse_layout(text),
        dtype=torch.bfloat16,
        block_size=16,
    )


@pytest.fixture(scope="module", params=TEXTS)
def plan(request: pytest.FixtureRequest) -> Plan:
    return plan_of(request.param)


ORIGINS = (
    "stays where",
    "the same on every rank",
    "from outside",
    "the carry",
    "as above",
    "all operands are whole",
)


class Page(HTMLParser):
    """Reads a page; fails on a tag that is not closed where it should be."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[set[str]] = []
        self.wires: set[str] = set()
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.links += [given[name] or "" for name in ("src", "href", "srcset") if name in given]
        if "data-vs" in given:
            self.rows.append(set((given["data-vs"] or "").split()))
        if "data-v" in given:
            self.wires.add(given["data-v"] or "")
        if tag not in self.VOID and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.get_starttag_text() and tag in ("path", "circle", "rect") and self.open[-1] != tag:
            return  # a self-closing element
        assert self.open.pop() == tag


def test_a_page_is_whole_and_needs_nothing_from_elsewhere(plan: Plan) -> None:
    text = page([plan], tokens=TOKENS, links=Links(), blocks=9)
    found = Page(text)
    assert not found.links
    assert "url(" not in text
    assert "@import" not in text
    codes = (*plan.program.blocks, plan.program.driver)
    assert len(found.rows) == sum(len(code.steps) for code in codes)
    assert text.count("<template>") == len(found.rows)
    drawn = sum(len(draw(code).wires) for code in codes)
    assert len(found.wires) == drawn, "every value has its own key"
    assert plan.hash[:12] in text


def test_plans_stand_side_by_side() -> None:
    plans = [plan_of(TEXTS[1]), plan_of(TEXTS[2])]
    text = page(plans, tokens=TOKENS, links=Links(), blocks=9)
    assert text.count('<section class="plan">') == 2
    assert "repeat(2," in text


def test_no_two_values_share_a_lane_at_once(plan: Plan) -> None:
    for code in (*plan.program.blocks, plan.program.driver):
        drawing = draw(code)
        assert len(drawing.nodes) == len(code.steps)
        held: dict[tuple[int, int], object] = {}
        for wire in drawing.wires:
            assert 0 <= wire.lane < drawing.width
            end = max((row for row, _ in wire.uses), default=wire.row)
            for row in range(wire.row, end):
                assert held.setdefault((wire.lane, row), wire) is wire


def test_every_value_has_a_reason_that_ends_at_an_origin(plan: Plan) -> None:
    for code in (*plan.program.blocks, plan.program.driver):
        for var in values(code):
            text = why(plan.program, f"{code.name}.{var.name}")
            assert f"{code.name}.{var}" in text.splitlines()
            last = text.splitlines()[-1]
            assert any(origin in last for origin in ORIGINS), text


def test_why_names_the_annotation_and_the_layout() -> None:
    text = why(plan_of("tp=4").program, "layer_0.update")
    assert "embedding: each rank sums its shard of v: a sum over tp" in text
    assert "embed: v@tp d: a param stays" in text
    with pytest.raises(PlacementError, match="did you mean"):
        why(plan_of("tp=4").program, "atention")


def test_a_plan_does_not_differ_from_itself(plan: Plan) -> None:
    text = difference(plan, plan, tokens=TOKENS, links=Links(), blocks=9)
    assert text.count(": the same") == len(plan.program.blocks) + 1
    assert not re.search(r"^[+~-] (?!dp|tp|a )", text, re.MULTILINE)


def test_a_difference_lists_what_sequence_parallelism_changes() -> None:
    text = difference(plan_of(TEXTS[1]), plan_of(TEXTS[2]), tokens=TOKENS, links=Links(), blocks=9)
    assert re.search(r"^- all_reduce: n d !tp -> n d", text, re.MULTILINE)
    assert re.search(r"^\+ reduce_scatter: n d !tp -> n@tp d", text, re.MULTILINE)
    assert re.search(r"^~ add_rms_norm: n d, n d  ->  n@tp d, n@tp d", text, re.MULTILINE)


def test_memory_is_what_a_rank_allocates(plan: Plan) -> None:
    held = memory(plan, tokens=TOKENS, blocks=9)
    allocated = plan.allocate()
    assert held.weights == {name: x.numel() * x.element_size() for name, x in allocated.items()}
    caches = plan.allocate_caches(9)
    assert held.cache == sum(
        x.numel() * x.element_size() for layer in caches for x in (layer.k, layer.v)
    )
    assert held.total == sum(held.weights.values()) + held.cache + held.activations
    assert "weights" in str(held)


def test_activations_shrink_with_the_shards() -> None:
    whole, sharded = (
        memory(plan_of(text), tokens=step_sizes(64, 1), blocks=1).activations
        for text in ("tp=1", "tp=4; Hidden=n@tp d")
    )
    assert sharded < whole


def test_the_table_lists_every_collective_once(plan: Plan) -> None:
    found = tuple(collectives(plan.program, TOKENS, Links()))
    moves = [
        step
        for code in (*plan.program.blocks, plan.program.driver)
        for step in code.steps
        if isinstance(step, Move) and step.kind not in LOCAL
    ]
    assert len(found) == len(moves)
    text = table(found)
    assert text.splitlines()[-1].startswith("a step: ")
    assert all(f": {move.why}" in text for move in moves)


def test_a_collective_takes_the_slowest_link_it_crosses() -> None:
    links = parse_links(["nvlink-h100", "dp=ethernet-100g"])
    assert links.over(("tp",)) == LINKS["nvlink-h100"]
    assert links.over(("dp", "tp")) == LINKS["ethernet-100g"]
    with pytest.raises(MeshError, match="no link 'smoke'"):
        parse_links(["tp=smoke"])


NAMES = st.sampled_from(["k", "g", "f", "v", "d"])
LAYOUTS = st.builds(
    Layout,
    st.sampled_from(["tp=1", "dp=2 tp=4", "tp=(kv=2,rep=4)"]),
    st.dictionaries(NAMES, st.sampled_from(["", "tp", "dp+tp"]), max_size=3),
    st.dictionaries(st.sampled_from(["Hidden", "Logits"]), st.just("n@tp d"), max_size=2),
)


@given(LAYOUTS)
def test_a_layout_reads_back_from_its_text(layout: Layout) -> None:
    again = parse_layout(text_of(layout))
    assert (again.mesh, dict(again.place), dict(again.types)) == (
        layout.mesh,
        dict(layout.place),
        dict(layout.types),
    )


def test_a_layout_part_of_no_form_is_named() -> None:
    with pytest.raises(MeshError, match="'what is this'"):
        parse_layout("tp=2; what is this")


def test_a_page_counts_collectives_and_explains_their_signs() -> None:
    family = family_of("Qwen3MoeForCausalLM")
    sizes = {**CONFIG, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    plans = [
        compile_plan(
            family,
            family.config(sizes),
            parse_layout("dp=2 tp=2; j: e:dp+tp requests:dp; Hidden=n@tp d; Tokens=n@tp d"),
            dtype=torch.bfloat16,
            block_size=16,
            tokens=tokens,
        )
        for tokens in (16, 1 << 20)
    ]
    text = page(plans, tokens=TOKENS, links=Links(), blocks=9)
    for plan in plans:
        found = collectives(plan.program, TOKENS, Links())
        count = sum(each.times for each in found if not each.joins)
        assert f"<b>{count}</b><span>collectives a step" in text
    for sign in ("<b>⊞</b>all_gather", "<b>⇉</b>dispatch", "<b>Σ⇇</b>combine"):
        assert f'<span class="sign">{sign}</span>' in text
    colours = re.findall(r'chip (s\d)">Sharded over ([a-z+]+)', text)
    assert len(dict(colours)) == len(set(colours)), "equal groups look alike on both sides"
