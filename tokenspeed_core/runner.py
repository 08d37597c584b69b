# SPDX-License-Identifier: MIT
"""One rank's model, ready to run: emitted program, packs, caches."""

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .collectives import Collectives
from .host_pool import HostPool
from .kernels import cpu as _cpu  # noqa: F401  (registers the native kernels)
from .kernels.sampling import sample
from .ops import LayerState
from .sharding import Plan, leaves
from .slots import Slots, Step
from .transfers import Transfers


@attrs.frozen(eq=False, repr=False)
class Runner:
    """Runs steps on one rank.

    The caches are the only state; they are written in place, in the order of steps.
    """

    plan: Plan
    num_blocks: int  # block 0, scratch, included
    block_size: int
    num_slots: int
    max_model_len: int
    host_blocks: int  # of the host tier, 0: none
    _forward: Any
    _weights: Mapping[str, Any]
    _caches: Any
    _collectives: Collectives

    @classmethod
    def of(
        cls,
        plan: Plan,
        packs: Mapping[str, Tensor],
        collectives: Collectives,
        *,
        num_blocks: int,
        block_size: int,
        num_slots: int,
        max_model_len: int,
        host_blocks: int = 0,
    ) -> "Runner":
        """Allocate caches of `num_blocks` blocks and load the plan's emitted program."""
        return cls(
            plan=plan,
            num_blocks=num_blocks,
            block_size=block_size,
            num_slots=num_slots,
            max_model_len=max_model_len,
            host_blocks=host_blocks,
            forward=plan.load(),
            weights=plan.weights(packs),
            caches=plan.allocate_caches(num_blocks),
            collectives=collectives,
        )

    @property
    def keeps_states(self) -> bool:
        """Whether a request's past is also in a state, so that no other may begin from its blocks.

        A request's state has the number of its slot.
        """
        return any(isinstance(layer, LayerState) for layer in self._caches)

    @property
    def program_hash(self) -> bytes:
        """Equal on all ranks, or they do not run one program."""
        return bytes.fromhex(self.plan.hash)

    def new_slots(self) -> Slots:
        """Return empty slot tables of this runner's size."""
        max_blocks = -(-self.max_model_len // self.block_size)
        return Slots(self.num_slots, max_blocks, self.num_blocks, self.block_size)

    def new_transfers(
        self, notify: Callable[[], None], pool: type[HostPool] = HostPool
    ) -> Transfers | None:
        """Allocate the host tier and return what moves its blocks; None without one."""
        if not self.host_blocks:
            return None
        layers = [tuple(tensor for _, tensor in leaves(layer)) for layer in self._caches]
        return Transfers(pool(layers, self.host_blocks), layers[0][0].device, notify)

    @torch.inference_mode()
    def logits(self, step: Step, transfers: Transfers | None = None) -> Tensor:
        """Return float32 logits [m, v] of the step's sampling rows, writing its keys and values.

        A layer waits for the same layer of the loads that the step's rows wait for.
        """
        sources, targets = step.copies
        if len(sources):
            self._copy_blocks(sources, targets)
        caches = transfers.gated(self._caches, step.loads) if transfers else self._caches
        logits, _caches = self._forward(self._collectives, self._weights, caches, step.batch)
        assert isinstance(logits, Tensor)
        return logits

    @torch.inference_mode()
    def run(
        self, step: Step, transfers: Transfers | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Run a step; return the tokens and log-probabilities [m] of its sampling rows."""
        if step.num_tokens == 0:  # a step that only moves blocks
            return np.empty(0, np.int32), np.empty(0, np.float32)
        return sample(self.logits(step, transfers), step.sampling)

    def _copy_blocks(self, sources: NDArray[np.int32], targets: NDArray[np.int32]) -> None:
        source, target = torch.from_numpy(sources).long(), torch.from_numpy(targets).long()
        for layer in self._caches:
            if not isinstance(layer, LayerState):
                for _, tensor in leaves(layer):
                    tensor[target] = tensor[source]


def block_bytes(plan: Plan) -> int:
    """Return the bytes of one KV block on a rank, all layers together."""
    return sum(
        int(np.prod(shape.blocks(1))) * shape.dtype.itemsize
        for layer in plan.cache
        for shape in layer
    )
