# SPDX-License-Identifier: MIT
"""Programs that must be refused: what each adds to a small model, and under which layout.

The line that the error must name ends in `#!`.  `fields` are parameters besides those of `HEAD`.
"""

import attrs

HEAD = """
import torch
from torch import Tensor
from torch.nn import functional as F

from tokenspeed_core.ops import *
from tokenspeed_core.sharding import *

SIZES = dict(d=8, e=8, k=4, g=2, h=4, f=16, v=32, o=6, layers=2, b=None, s=4)
Hidden = Placed[Tensor, "n d"]


@module
class Layer:
    w: Placed[Tensor, "d e"]


@module
class Weights:
    embed: Placed[Tensor, "v d"]
    norm: Placed[Tensor, "d"]
    up: Placed[Tensor, "d f@tp"]
    gate: Placed[Tensor, "d f@tp"]
    down: Placed[Tensor, "f@tp d"]
    whole_up: Placed[Tensor, "d f"]
    whole_down: Placed[Tensor, "f d"]
    square: Placed[Tensor, "d e"]
    wq: Placed[Tensor, "d k@tp g h"]
    wk: Placed[Tensor, "d k@tp h"]
    wo: Placed[Tensor, "k@tp g h d"]
    head: Placed[Tensor, "v@tp d"]
    layers: tuple[Layer, ...]
{fields}


def forward(p, caches, batch):
    kv = caches[0]
    x = embedding(batch.tokens, p.embed)
{body}
    return y, caches
"""


@attrs.frozen
class Bad:
    """A bad program: its body, further parameters, layout, and words of the error."""

    name: str
    body: str
    fields: str = ""
    layout: str = "tp=2"
    words: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        body = "\n".join(f"    {line}" for line in self.body.strip().splitlines())
        fields = "\n".join(f"    {line}" for line in self.fields.strip().splitlines())
        return HEAD.format(fields=fields, body=body)


UP = 'u = einsum("n d, d f -> n f", x, p.up)\n'
QK = 'q = einsum("n d, d k g h -> n k g h", x, p.wq)\nk = einsum("n d, d k h -> n k h", x, p.wk)\n'


def line(name: str, expression: str, before: str = "", **more: object) -> Bad:
    return Bad(name, f"{before}y = {expression}  #!", **more)  # type: ignore[arg-type]


def field(name: str, spec: str) -> str:
    return f'{name}: Placed[Tensor, "{spec}"]'


# A parameter is whole where the activation is sharded: each rank would use the wrong part of it.
WHOLE = [
    line("bias_added", "u + p.t", UP, fields=field("t", "f")),
    line("gain", "u * p.t", UP, fields=field("t", "f")),
    line("added_twice", "u + p.t + p.t", UP, fields=field("t", "f")),
    line("head_bias", "k + p.t", QK, fields=field("t", "k h")),
    line("head_gain", "k * p.t", QK, fields=field("t", "k h")),
    line("query_bias", "q + p.t", QK, fields=field("t", "k g h")),
    line("query_gain", "q * p.t", QK, fields=field("t", "k g h")),
    line("bias_of_four", "u + p.t", UP, fields=field("t", "f"), layout="tp=4"),
    line("scaled_first", "u * 2.0 + p.t", UP, fields=field("t", "f")),
    line("torch_add", "torch.add(u, p.t)", UP, fields=field("t", "f")),
    line("torch_mul", "torch.mul(u, p.t)", UP, fields=field("t", "f")),
]  # fmt: skip

# A parameter is sharded where the op needs it whole.
SHARDED = [
    line("norm", "rms_norm(x, p.t, 1e-5)", fields=field("t", "d@tp")),
    line("norm_of_sum", "rms_norm(x + x, p.t, 1e-5)", fields=field("t", "d@tp")),
    line("joint_norm", "add_rms_norm(x, x, p.t, 1e-5)[0]", fields=field("t", "d@tp")),
    line("norm_of_heads", "rms_norm(k, p.t, 1e-5)", QK, fields=field("t", "h@tp")),
    line("norm_of_queries", "rms_norm(q, p.t, 1e-5)", QK, fields=field("t", "h@tp")),
    line("frequencies", "rope_angles(batch.positions, p.t)[0]",
         fields=field("t", "o@tp")),
    line("joint_norm_of_four", "rms_norm(x, p.t, 1e-5)", fields=field("t", "d@tp"),
         layout="tp=4"),
    line("norm_of_a_gain", "rms_norm(x * 2.0, p.t, 1e-5)", fields=field("t", "d@tp")),
]  # fmt: skip

# Two operands are sharded in ways that do not meet.
CLASHING = [
    line("two_biases", "p.t + p.s", fields=field("t", "f@tp") + "\n" + field("s", "f")),
    line("two_gains", "p.t * p.s", fields=field("t", "f@tp") + "\n" + field("s", "f")),
    line("two_products", 'einsum("d f, f e -> d e", p.up, p.t)', fields=field("t", "f e@tp")),
    line("two_axes", 'einsum("d f, d e -> f e", p.up, p.t)', fields=field("t", "d e@tp")),
    line("row_and_column", "u + r", UP + 'r = place(einsum("n d, d f -> n f", x, p.whole_up), '
         '"n@tp f")\n'),
    line("column_and_row", "r + u", UP + 'r = place(einsum("n d, d f -> n f", x, p.whole_up), '
         '"n@tp f")\n'),
    line("row_times_column", "u * r", UP + 'r = place(einsum("n d, d f -> n f", x, p.whole_up), '
         '"n@tp f")\n'),
    line("gated", "silu_mul(u, r)", UP + 'r = place(einsum("n d, d f -> n f", x, p.whole_up), '
         '"n@tp f")\n'),
    line("heads_and_groups", "a + q", QK + 'w = einsum("n d, d k g h -> n k g h", x, p.t)\n'
         'a = place(w, "n k g@tp h")\n', fields=field("t", "d k g h")),
    line("heads_and_tokens", "a * q", QK + 'w = einsum("n d, d k g h -> n k g h", x, p.t)\n'
         'a = place(w, "n@tp k g h")\n', fields=field("t", "d k g h")),
]  # fmt: skip

# Labels that are not the names of the dims.
LABELS = [
    line("swapped", 'einsum("n e, d e -> n d", x, p.square)'),
    line("other_row", 'einsum("m d, d f -> m f", x, p.up)'),
    line("other_row_kept", 'einsum("m d, d f -> n f", x, p.up)'),
    line("transposed_weight", 'einsum("n d, f d -> n f", x, p.up)'),
    line("transposed_input", 'einsum("d n, d f -> n f", x, p.up)'),
    line("head_for_key", 'einsum("n k, k f -> n f", x, p.up)'),
    line("one_label_off", 'einsum("n d, d k x h -> n k x h", x, p.wq)'),
    line("attention_out", 'einsum("n k g i, k g i d -> n d", q, p.wo)', QK),
    line("attention_order", 'einsum("n g k h, k g h d -> n d", q, p.wo)', QK),
    line("vocabulary", 'einsum("n d, w d -> n w", x, p.head)'),
    line("vocabulary_rows", 'einsum("n v, v d -> n d", x, p.head)'),
    line("experts_word", 'einsum("n d, d i -> n i", x, p.square)'),
]

# Torch's own words, with an op that says the same.
TORCH = [
    line("at", "x @ p.up"),
    line("at_square", "x @ p.square"),
    line("matmul", "torch.matmul(x, p.up)"),
    line("mm", "torch.mm(x, p.square)"),
    line("method_matmul", "x.matmul(p.up)"),
    line("linear", "F.linear(x, p.head)"),
    line("letters", 'torch.einsum("nd,df->nf", x, p.up)'),
    line("letters_of_heads", 'torch.einsum("nd,dkgh->nkgh", x, p.wq)'),
    line("letters_spaced", 'torch.einsum("a b, b c -> a c", x, p.square)'),
    line("letters_out", 'torch.einsum("nkgh,kghd->nd", q, p.wo)', QK),
    line("minus", "x - x"),
    line("minus_of_a_sum", "u - u", UP),
    line("torch_sub", "torch.sub(x, x)"),
    line("negated", "-x"),
    line("torch_neg", "torch.neg(x)"),
    line("halved", "x / 2"),
    line("torch_div", "torch.div(x, 2)"),
    line("to_float", "x.float()"),
    line("to_float_of_heads", "q.float()", QK),
    line("rows_by_index", "x[batch.logit_rows]"),
    line("zeros", "torch.zeros_like(x)"),
    line("lookup", "F.embedding(batch.tokens, p.embed)"),
    line("rms", "F.rms_norm(x, (8,), p.norm, 1e-5)"),
]

# What no op computes.
UNKNOWN = [
    line("softmax", "torch.softmax(x, -1)", words=("softmax",)),
    line("sum_method", "x.sum(-1)", words=("'sum'",)),
    line("mean", "x.mean(-1)", words=("'mean'",)),
    line("transposed", "x.transpose(0, 1)", words=("'transpose'",)),
    line("viewed", "x.view(-1)", words=("'view'",)),
    line("reshaped", "torch.reshape(x, (-1,))", words=("reshape",)),
    line("joined", "torch.cat((x, x))", words=("cat",)),
    line("cumulated", "torch.cumsum(x, 0)", words=("cumsum",)),
    line("sorted_rows", "torch.sort(x)", words=("sort",)),
    line("first_row", "x[0]", words=("indexing",)),
    line("compared", "x > 0", words=("comparison",)),
    line("where", "torch.where(x, x, x)", words=("where",)),
    line("in_place", "x.add_(x)", words=("'add_'",)),
    line("device", "x.cuda()", words=("'cuda'",)),
    line("detached", "x.detach()", words=("'detach'",)),
]

# The host reads a tensor.
HOST = [
    line("branch", "x if x else x", words=("hang",)),
    line("integer", "x * int(x)", words=("hang",)),
    line("number", "x * float(x)", words=("hang",)),
    line("length", "x * len(x)", words=("hang",)),
    line("loop", "[row for row in x][0]", words=("hang",)),
    line("index", "[x][x]", words=("hang",)),
    line("not_a_value", "x * (not x)", words=("hang",)),
]

# Constants made inside a model.
CONSTANT = [
    line("ones", "rms_norm(x, torch.ones(8), 1e-5)", words=("concrete Tensor",)),
    line("added_constant", "x + torch.ones(8)", words=("Tensor",)),
    line("scaled_by_constant", "x * torch.tensor(2.0)", words=("Tensor",)),
    line("constant_weight", 'einsum("n d, d f -> n f", x, torch.ones(8, 16))', words=("Tensor",)),
    line("constant_rows", "take_rows(x, torch.arange(2))", words=("Tensor",)),
]

# Caches are linear: each version is used once.
ATTEND = "paged_attention(q, k, k, kv, batch, 1.0)"
CACHE = [
    line("written_twice", f"{ATTEND}[0]", QK + f"{ATTEND}\n", words=("overwritten",)),
    line("read_after", f"{ATTEND}[0] + o", QK + f"o, new = {ATTEND}\n", words=("overwritten",)),
]

# Dims and sizes that do not meet, and annotations that say another thing than the value.
INNER = '@spmd\ndef inner(x: Placed[Tensor, "{spec}"]):{mark}\n    return x\ny = inner(x){call}'
SHAPES = [
    line("mixed_dims", "rms_norm(u, p.norm, 1e-5)", UP, words=("other meaning",)),
    line("mixed_sum", "x + u", UP, words=("other meaning",)),
    line("mixed_product", "u * p.norm", UP, words=("other meaning",)),
    line("mixed_gate", "silu_mul(x, u)", UP, words=("other meaning",)),
    Bad("annotated_f", INNER.format(spec="n f", mark="", call="  #!")),
    Bad("annotated_order", INNER.format(spec="d n", mark="", call="  #!")),
    Bad("annotated_short", INNER.format(spec="n", mark="", call="  #!")),
    Bad("annotated_long", INNER.format(spec="n d e", mark="", call="  #!")),
    Bad("annotated_varying", INNER.format(spec="n d ?tp", mark="  #!", call="")),
    line("placed_wrong", 'place(x, "n f")'),
    line("placed_varying", 'place(x, "n d ?tp")'),
]

# Einsums that are none.
MALFORMED = [
    line("result_from_nowhere", 'einsum("n d, d f -> n z", x, p.up)'),
    line("no_arrow", 'einsum("n d, d f", x, p.up)'),
    line("two_results", 'einsum("n d, d f -> n f, n d", x, p.up)'),
]

# Stored values that cannot be stored so; layouts that do not fit.
STORED = [
    Bad("owed_norm", "y = rms_norm(x, p.t, 1e-5)", fields=field("t", "d !tp") + "  #!"),
    Bad("owed_weight", 'y = einsum("n d, d e -> n e", x, p.t)',
        fields=field("t", "d e !tp") + "  #!"),
    Bad("varying_weight", "y = x + p.t", fields=field("t", "d ?tp") + "  #!"),
    Bad("three_ways", 'y = einsum("n d, d o -> n o", x, p.t)',
        fields=field("t", "d o@tp") + "  #!", layout="tp=4"),
    Bad("three_ways_placed", 'y = einsum("n d, d o -> n o", x, p.t)',
        fields=field("t", "d o") + "  #!", layout="tp=4; o:tp"),
]  # fmt: skip

# Host integers of another dim, direct sums taken as one, per-rank code read by others.
TYPES = [
    line("another_size",
         "rms_norm_by_total(x, stack_totals(squares(x), squares(x)), p.norm, 0, 16, 1e-5)",
         words=("is the size of d",)),
    line("another_column",
         "rms_norm_by_total(x, stack_totals(squares(x), squares(x)), p.norm, 2, 8, 1e-5)",
         words=("points into z",)),
    line("too_many_experts", "softmax_router(x, 9, True)[1]", words=("counts among d",)),
    line("no_expert", "softmax_router(x, 0, True)[1]", words=("counts among d",)),
    line("count_read", "x if batch.num_rows == 1 else x * 2.0", words=("Batch.num_rows",)),
    line("count_divided", "x * (1.0 / batch.max_query)", words=("Batch.max_query",)),
    line("parts_of_no_sum", "parts(x, 4, 4)[0]", words=("parts of sizes",)),
    line("parts_of_other_sizes", "parts(t, 10, 10)[0]", words=("(f|k) of size 20",),
         before='t = einsum("n d, d (f|k) -> n (f|k)", x, p.t)\n',
         fields=field("t", "d (f|k)@tp")),
    line("sum_read_whole", "rms_norm(t, p.s, 1e-5)", words=("part by part", "parts("),
         before='t = einsum("n d, d (f|k) -> n (f|k)", x, p.t)\n',
         fields=field("t", "d (f|k)@tp") + "\n" + field("s", "(f|k)")),
    Bad("varying_read",
        '@local("n d -> n d ?tp")\ndef each(x):\n    return x\ny = each(x) * 2.0  #!',
        words=("only a local region", "?tp")),
]  # fmt: skip
PROGRAMS = [
    *WHOLE,
    *SHARDED,
    *CLASHING,
    *LABELS,
    *TORCH,
    *UNKNOWN,
    *HOST,
    *CONSTANT,
    *CACHE,
    *SHAPES,
    *MALFORMED,
    *STORED,
    *TYPES,
]
