# SPDX-License-Identifier: MIT
"""A checkpoint whose matrices are stored in float8, read as the numbers that they stand for."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from .checkpoint import Checkpoint, CheckpointError, bounded_slices

if TYPE_CHECKING:
    import torch

# Beside `weight`: a factor, for the whole matrix, each row, or each block.  DeepSeek's "inverse"
# factor is multiplied with, as the other is.
_SUFFIXES = ("_scale_inv", "_scale")


def form_of(config: Mapping[str, Any]) -> str | None:
    """Return the `--weights` of a checkpoint in float8, None of one that is not quantised.

    Raises:
        CheckpointError: it is quantised in another way.
    """
    about = config.get("quantization_config")
    if not about:
        return None
    assert isinstance(about, Mapping)
    method = about.get("quant_method")
    groups = about.get("config_groups") or {}
    weights = [group.get("weights") or {} for group in groups.values()]
    narrow = all(each.get("type") == "float" and each.get("num_bits") == 8 for each in weights)
    if method == "fp8" or (method == "compressed-tensors" and weights and narrow):
        return "fp8-block" if about.get("weight_block_size") else "fp8"
    raise CheckpointError(
        f"the config says quantization_config.quant_method = {method!r}; what is read is fp8, "
        f"compressed-tensors with float weights of 8 bits, GGUF, and weights as they are: take a "
        f"checkpoint of these"
    )


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without what it says of float8."""
    kept = dict(config)
    if kept.get("quantization_config") and form_of(config):
        del kept["quantization_config"]
    return kept


class Float8Checkpoint(Checkpoint):
    """Another checkpoint, its scaled tensors multiplied out to float32 as they are read."""

    def __init__(self, stored: Checkpoint) -> None:
        self._stored = stored
        self._scale_of = {
            name.removesuffix(suffix): name
            for suffix in _SUFFIXES
            for name in stored.names
            if name.endswith(suffix) and name.removesuffix(suffix) in stored.names
        }
        self._names = [name for name in stored.names if name not in self._scale_of.values()]

    @staticmethod
    def around(stored: Checkpoint) -> Checkpoint:
        """Return `stored`, or this around it if its config says that it is in float8.

        Raises:
            CheckpointError: it is quantised in a way that is not read.
        """
        return stored if form_of(stored.config) is None else Float8Checkpoint(stored)

    @property
    def config(self) -> dict[str, object]:
        """The config but for what it says of float8, which is no matter of the model."""
        return plain_config(self._stored.config)

    @property
    def form(self) -> str:
        """The `--weights` that keep matrices as they are stored."""
        return form_of(self._stored.config) or "plain"

    @property
    def names(self) -> Collection[str]:
        """All tensor names but those of scales."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the whole shape of tensor `name`."""
        return self._stored.shape(name)

    def dtype(self, name: str) -> "torch.dtype":
        """Return float32 for scaled tensors, the stored dtype of others."""
        import torch

        return torch.float32 if name in self._scale_of else self._stored.dtype(name)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> "torch.Tensor":
        """Return `tensor[index]`, scaled."""
        part = self._stored.read(name, index)
        if name not in self._scale_of:
            return part
        shape = self.shape(name)
        scale = self._stored.read(self._scale_of[name]).float()
        if scale.numel() == 1:
            return part.float() * scale.reshape(())
        if scale.dim() == 1:
            scale = scale[:, None]
        block = self._block(name, shape, tuple(scale.shape))
        for dim, place in enumerate(bounded_slices(name, shape, index) or map(slice, shape)):
            start, stop, _ = place.indices(shape[dim])
            scale = scale.repeat_interleave(block[dim], dim).narrow(dim, start, stop - start)
        return part.float() * scale

    def _block(self, name: str, shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...]:
        """Return the elements of a scale's block in each dim."""
        about = self._stored.config["quantization_config"]
        assert isinstance(about, dict)
        sizes = about.get("weight_block_size") or (1, shape[-1])
        block = tuple(
            size if count == 1 else wide
            for size, count, wide in zip(shape, scales, sizes, strict=True)
        )
        if tuple(-(-size // wide) for size, wide in zip(shape, block, strict=True)) != scales:
            raise CheckpointError(
                f"tensor {name} of shape {list(shape)} has scales of shape {list(scales)}, which "
                f"are none of blocks {list(sizes)}; the files do not belong to their config"
            )
        return block

    def close(self) -> None:
        """Let go of the files."""
        self._stored.close()
