# SPDX-License-Identifier: MIT
"""One rank's model, ready to run: emitted program, packs, caches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .block_groups import BlockGroups, allocate_caches, allocate_host
from .collectives import Collectives
from .device_tables import DeviceTables
from .embedded import embedded
from .grammar.library import Library
from .host_pool import HostPool, host_layers
from .kernels import cpu as _cpu  # noqa: F401  (registers the native kernels)
from .kernels.float8 import FLOAT8, Float8Matrix
from .models.sampling import Choice, sample, sampled_batch
from .ops import Batch
from .ops.attention import LayerKV
from .rank_groups import RankGroups
from .sampled import Sampled
from .sharding import RankPlan, leaves
from .sharding.plan import Forward
from .sharding.plan_table import PlanTable
from .slots import Copies, Slots, Step
from .transfers import Transfers
from .upload import uploaded


@attrs.frozen(eq=False, repr=False)
class Runner:
    """Runs steps on one rank.

    The caches are the only state; they are written in place, in the order of steps.
    """

    plans: PlanTable  # of this rank
    ranks: RankGroups
    groups: BlockGroups
    num_blocks: int  # parents of the groups; the first, scratch, included
    num_slots: int
    max_model_len: int
    host_blocks: int  # of the host tier, parents with several groups; 0: none
    _forwards: tuple[Forward, ...]  # of each plan
    _weights: Mapping[str, Any]
    _caches: Any
    collectives: Any  # what the program calls them of: `Collectives`
    _multiples: tuple[int, ...]  # of each plan: tokens are padded to it
    _chosen: Callable[[Choice], tuple[Forward, ...]] | None  # the same, with tokens for logits
    embeds: bool  # the program gives hidden rows, not logits

    @classmethod
    def of(
        cls,
        plans: PlanTable,
        packs: Mapping[str, Tensor | Float8Matrix],
        collectives: Collectives,
        *,
        ranks: RankGroups,
        groups: BlockGroups,
        num_blocks: int,
        num_slots: int,
        max_model_len: int,
        host_blocks: int = 0,
        multiples: Sequence[int] = (),
        chosen: Callable[[Choice], tuple[Forward, ...]] | None = None,
        embeds: bool = False,
    ) -> "Runner":
        """Allocate caches of `num_blocks` blocks and load the plans' emitted programs.

        Tokens are padded to the multiple of the plan that runs them, 1 if not told; with `chosen`
        ranks of a sharded vocabulary choose tokens together, by the programs that it makes, one
        for each plan, once a choice.  What `embeds` gives hidden rows for logits, and samples
        nothing.
        """
        plan = plans.first
        return cls(
            plans=plans,
            ranks=ranks,
            groups=groups,
            num_blocks=num_blocks,
            num_slots=num_slots,
            max_model_len=max_model_len,
            host_blocks=host_blocks,
            forwards=tuple(each.load() for each in plans.plans),
            weights=plan.weights(packs),
            caches=allocate_caches(plan, groups, num_blocks, ranks.device),
            collectives=collectives,
            multiples=tuple(multiples) or (1,) * len(plans.plans),
            chosen=cache(chosen) if chosen else None,
            embeds=embeds,
        )

    def with_blocks(self, num_blocks: int) -> "Runner":
        """Return this runner with new, empty caches of so many blocks."""
        caches = allocate_caches(self.plan, self.groups, num_blocks, self.device)
        return attrs.evolve(self, num_blocks=num_blocks, caches=caches)

    def with_collectives(self, collectives: Any) -> "Runner":
        """Return this runner, its program calling other collectives."""
        return attrs.evolve(self, collectives=collectives)

    @property
    def plan(self) -> RankPlan:
        """What plans of all sizes have in common: packs, caches, mesh."""
        return self.plans.first

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.groups.first.tokens

    @property
    def device(self) -> torch.device:
        """Where weights and caches are."""
        _, tensor = next(leaves(self._caches[0]))
        device: torch.device = tensor.device
        return device

    @property
    def packs(self) -> tuple[Tensor, ...]:
        """The weights in the order in which the program has them."""
        return tuple(_tensors(self._weights))

    @property
    def program_hash(self) -> bytes:
        """Equal on all ranks, or they do not run one program."""
        return bytes.fromhex(self.plans.hash)

    def new_slots(self, library: Library | None = None) -> Slots:
        """Return empty slot tables of this runner's size; grammars come from a library."""
        sizes = (self.num_slots, self.max_blocks, self.num_blocks)
        return Slots(*sizes, self.groups, library, shapes=not self.embeds)

    def new_tables(self) -> DeviceTables:
        """Return empty tables on the runner's device, of the shape of its slots."""
        return DeviceTables.of(self.num_slots, [self.max_blocks], self.block_size, self.device)

    @property
    def max_blocks(self) -> int:
        """The most blocks of a slot."""
        return -(-self.max_model_len // self.block_size)

    @property
    def shared_parts(self) -> int:
        """In how many parts rows that share keys read them; 0 if attention is of no such kind.

        One program a kv head reads a part, and two fill a processor.
        """
        cache = self._caches[0]
        if not isinstance(cache, LayerKV):
            return 0
        programs = 4
        if self.device.type == "cuda":
            programs = torch.cuda.get_device_properties(self.device).multi_processor_count
        return max(8, 2 * programs // cache.k.shape[1])

    def block(self, index: int) -> list[Tensor]:
        """Return a copy of a block's tensors, layer by layer."""
        return [tensor[index].clone() for layer in self._caches for _, tensor in leaves(layer)]

    @torch.inference_mode()
    def randomise_caches(self, draw: torch.Generator) -> None:
        """Fill the caches with standard normal values, for benches."""
        for layer in self._caches:
            for _, tensor in leaves(layer):
                if tensor.dtype == FLOAT8:  # which no generator fills
                    for blocks in tensor.split(4096):
                        blocks.copy_(torch.randn(blocks.shape, generator=draw, device=draw.device))
                else:
                    tensor.normal_(generator=draw)

    def new_transfers(
        self, notify: Callable[[], None], pool: type[HostPool] = HostPool
    ) -> Transfers | None:
        """Allocate the host tier and return what moves its blocks; None without one."""
        if not self.host_blocks:
            return None
        layers = _layers(self._caches)
        if len(self.groups) == 1:
            host = host_layers(layers, self.host_blocks)
        else:
            pinned = self.device.type == "cuda"
            host = _layers(allocate_host(self.plan, self.groups, self.host_blocks, pinned))
        owners = {each: index for index, group in enumerate(self.groups) for each in group.layers}
        groups = [owners[layer] for layer in range(len(layers))]
        return Transfers(pool(layers, host), groups, self.device, notify)

    @torch.inference_mode()
    def logits(self, step: Step, transfers: Transfers | None = None) -> Tensor:
        """Return float32 logits [m, v] of the step's sampling rows, writing its keys and values.

        The batch is on the runner's device.  A layer waits for the same layer of the loads that
        the step's rows wait for.
        """
        return self._run(self._forwards, step, step.batch, transfers)

    def forward(self, batch: Batch, caches: Any = None) -> Tensor:
        """Return float32 logits [m, v] of a batch on the device, writing its keys and values."""
        return self._result(self._forwards, batch, self._caches if caches is None else caches)

    def index(self, tokens: int) -> int:
        """Return which plan runs a step that has so many tokens here, before it pads them."""
        mesh = self.plan.mesh
        return self.plans.index(tokens * mesh.size(mesh.requests))

    def captures(self, tokens: int) -> bool:
        """Whether a graph can hold a step of so many tokens.

        It cannot where rows go to the ranks of their experts: the host waits for how many.
        """
        return "c.dispatch(" not in self.plans.plans[self.index(tokens)].source

    def _run(
        self,
        forwards: Sequence[Forward],
        step: Step,
        batch: Batch,
        transfers: Transfers | None,
    ) -> Tensor:
        self.copy_blocks(step.copies)
        caches = transfers.gated(self._caches, step.loads) if transfers else self._caches
        return self._result(forwards, batch, caches)

    def _result(self, forwards: Sequence[Forward], batch: Batch, caches: Any) -> Tensor:
        index = self.index(len(batch.tokens))
        padded = batch.padded(self._multiples[index])
        result, _caches = forwards[index](self.collectives, self._weights, caches, padded)
        return result

    @torch.inference_mode()
    def run(self, step: Step, transfers: Transfers | None = None) -> Sampled:
        """Run a step; return what its sampling rows sampled."""
        if step.num_tokens == 0:  # a step that only moves blocks
            asked = bool(step.sampling.logprobs.any())
            return Sampled(torch.empty(0, dtype=torch.int32), torch.empty(0), asked)
        if self._chosen is None or step.shapers:
            return self.sampled(step, self.logits(step, transfers))
        return self.chosen(step, Choice.of(step.sampling), transfers)

    @torch.inference_mode()
    def sampled(self, step: Step, every: Tensor) -> Sampled:
        """Return what a step's sampling rows sample of the logits `every[m+p,v]` of its rows."""
        rows = step.sampling
        if self.embeds:
            return embedded(every, step.sampling_slots, bool(rows.logprobs.any()))
        logits = every[: len(step.sampling_slots)]
        tokens, logprobs = sample(step.shapers.shaped(logits, rows.temperature), rows)
        tokens = step.shapers.take(tokens, logits)
        logprobs = step.shapers.own_logprobs(logits, tokens, logprobs)
        return Sampled(tokens, logprobs, bool(rows.logprobs.any()), step.shapers.told(every))

    @torch.inference_mode()
    def chosen(self, step: Step, how: Choice, transfers: Transfers | None = None) -> Sampled:
        """Run a step by the program that chooses its tokens; `how` is all that some row asks for.

        Ranks that run other rows take the same program.
        """
        assert self._chosen is not None, "one rank samples by itself"
        rows = step.sampling
        forwards = self._chosen(how)
        pairs = self._run(forwards, step, sampled_batch(step.batch, rows), transfers)
        logprobs = pairs[:, 1].masked_fill(~rows.logprobs, torch.nan)
        return Sampled(pairs[:, 0].int(), logprobs.float(), how.reported)

    @torch.inference_mode()
    def fetch(self, axis: str, blocks: NDArray[np.int32], source: int, target: int) -> None:
        """Copy blocks from the rank at place `source` of `axis` to the one at `target`."""
        index = torch.from_numpy(blocks.astype(np.int64))
        for layer in self._caches:
            for _, tensor in leaves(layer):
                sent = self.collectives.carried(tensor[index], axis, source, target)
                if sent is not None:
                    tensor[index] = sent

    @torch.inference_mode()
    def copy_blocks(self, copies: Copies) -> None:
        """Copy blocks onto blocks, all sources of a group read before a target is written."""
        for index, group in enumerate(self.groups):
            own = copies.groups == index
            if not own.any():
                continue
            source = uploaded(copies.sources[own].astype(np.int64), self.device)
            target = uploaded(copies.targets[own].astype(np.int64), self.device)
            for layer in group.layers:
                for _, tensor in leaves(self._caches[layer]):
                    tensor[target] = tensor[source]


def _layers(caches: Any) -> list[tuple[Tensor, ...]]:
    return [tuple(tensor for _, tensor in leaves(layer)) for layer in caches]


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
        return
    if isinstance(tree, Float8Matrix):
        yield from (tree.data, tree.scale)
        return
    for each in tree.values() if isinstance(tree, Mapping) else tree:
        yield from _tensors(each)
