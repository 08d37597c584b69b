# SPDX-License-Identifier: MIT
"""The host tier of one rank: a second place for KV blocks, with a checksum for each."""

from collections.abc import Sequence

import torch
from torch import Tensor

Layer = tuple[Tensor, ...]  # cache tensors of one layer, each [blocks, ...]


def host_layers(caches: Sequence[Layer], num_blocks: int) -> list[Layer]:
    """Return memory for `num_blocks` blocks of each layer; pinned beside an accelerator."""
    pinned = caches[0][0].device.type == "cuda"
    return [
        tuple(
            torch.empty((num_blocks, *tensor.shape[1:]), dtype=tensor.dtype, pin_memory=pinned)
            for tensor in layer
        )
        for layer in caches
    ]


class ChecksumError(RuntimeError):
    """A host block does not hold what was stored there."""


class HostPool:
    """Copies blocks between the caches and host memory, a layer at a time.

    `host` has the layers of `caches`, with other numbers of blocks.  On a CPU it is a second
    buffer; beside an accelerator it is pinned memory, and copies go in the order of the current
    stream.  A checksum for each block and tensor is taken when it is stored, and compared after it
    was loaded: sum of words times odd weights modulo 2^64, which any change of one word changes.
    """

    def __init__(self, caches: Sequence[Layer], host: Sequence[Layer]) -> None:
        self._caches = caches
        self._device = caches[0][0].device
        self._host = host
        self._sums = [
            tuple(torch.zeros(len(each), dtype=torch.int64, device=self._device) for each in layer)
            for layer in host
        ]
        self._weights: dict[int, Tensor] = {}

    @property
    def num_layers(self) -> int:
        return len(self._caches)

    def store(self, layer: int, sources: Tensor, targets: Tensor) -> None:
        """Copy cache blocks `sources[n]` of a layer onto host blocks `targets[n]`."""
        for cache, host, sums in zip(
            self._caches[layer], self._host[layer], self._sums[layer], strict=True
        ):
            blocks = cache[sources.to(self._device)]
            sums[targets.to(self._device)] = self._checksums(blocks)
            host[targets] = blocks.to("cpu")

    def load(self, layer: int, sources: Tensor, targets: Tensor) -> None:
        """Copy host blocks `sources[n]` of a layer onto cache blocks `targets[n]`.

        Raises:
            ChecksumError: a block is not what was stored.
        """
        for cache, host, sums in zip(
            self._caches[layer], self._host[layer], self._sums[layer], strict=True
        ):
            staged = host[sources]
            if self._device.type == "cuda":
                staged = staged.pin_memory().to(self._device, non_blocking=True)
            cache[targets.to(self._device)] = staged
            wrong = self._checksums(staged) != sums[sources.to(self._device)]
            if bool(wrong.any()):
                bad = sources[wrong.to("cpu")].tolist()
                raise ChecksumError(
                    f"host blocks {bad} of layer {layer} changed since they were stored; they are "
                    f"computed again, but have the memory checked if this comes back"
                )

    def _checksums(self, blocks: Tensor) -> Tensor:
        """Return one checksum a block [n] for `blocks[n, ...]`."""
        words = _words(blocks.flatten(1).contiguous())
        width = words.shape[1]
        if width not in self._weights:
            draw = torch.Generator().manual_seed(width)
            weights = torch.randint(-(2**62), 2**62, (width,), generator=draw) * 2 + 1
            self._weights[width] = weights.to(blocks.device)
        return (words.to(torch.int64) * self._weights[width]).sum(1)


def _words(rows: Tensor) -> Tensor:
    """View rows of bytes as the widest integers that divide them."""
    size = rows.shape[1] * rows.element_size()
    for dtype in (torch.int64, torch.int32, torch.int16):
        if size % dtype.itemsize == 0 and dtype.itemsize >= rows.element_size():
            return rows.view(dtype)
    return rows.view(torch.uint8)
