# SPDX-License-Identifier: MIT
"""What every stored model offers, whatever its file format."""

import abc
import difflib
from collections.abc import Collection
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a process that only looks at the configuration must not pay for torch
    import torch


class CheckpointError(ValueError):
    """A stored model cannot be opened, or does not hold what was asked of it."""


class Checkpoint(abc.ABC):
    """A model on disk: its configuration and its tensors, both in Hugging Face terms.

    Tensors are read one slice at a time, so that a rank touches only the bytes that it keeps.
    """

    @property
    @abc.abstractmethod
    def config(self) -> dict[str, object]:
        """The model's configuration in the terms of a Hugging Face `config.json`."""

    @property
    def form(self) -> str:
        """The form of matrices that keeps them as they are stored, as `--weights` names it."""
        return "plain"

    @property
    @abc.abstractmethod
    def names(self) -> Collection[str]:
        """The Hugging Face names of all tensors."""

    @abc.abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return the whole shape of tensor `name`; CheckpointError if there is none."""

    @abc.abstractmethod
    def dtype(self, name: str) -> "torch.dtype":
        """Return the dtype that `read` gives for `name`: float32 for quantised GGUF types."""

    @abc.abstractmethod
    def read(self, name: str, index: tuple[slice, ...] = ()) -> "torch.Tensor":
        """Return `tensor[index]` as a contiguous CPU tensor that shares no memory with the file.

        Dimensions beyond `index` are read whole.  Bytes outside the slice are not read, except
        that a quantised block is decoded whole.

        Raises:
            CheckpointError: there is no such tensor, or the slice has a step or too many
                dimensions.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the files; tensors that were read stay valid."""

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def bounded_slices(
    name: str, shape: tuple[int, ...], index: tuple[slice, ...]
) -> tuple[slice, ...]:
    """Return `index` with one explicit `start <= stop <= size`, step 1 slice per dimension.

    Raises:
        CheckpointError: more slices than dimensions, or a step other than 1.
    """
    if len(index) > len(shape):
        raise CheckpointError(
            f"{len(index)} slices for tensor {name} of shape {list(shape)}; "
            f"give at most {len(shape)}"
        )
    whole = (slice(None),) * (len(shape) - len(index))
    bounded = []
    for dimension, size in zip((*index, *whole), shape, strict=True):
        start, stop, step = dimension.indices(size)
        if step != 1:
            raise CheckpointError(
                f"slice step {step} on tensor {name}; read the range and stride it afterwards"
            )
        bounded.append(slice(start, max(start, stop)))
    return tuple(bounded)


def missing_tensor(name: str, names: Collection[str], where: object) -> CheckpointError:
    """Return the error for a tensor that is not in the checkpoint, with the nearest names."""
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"nearest names: {', '.join(near)}" if near else f"it has {len(names)} other tensors"
    return CheckpointError(
        f"no tensor {name} in {where}; {hint}; check that the weights belong to the config"
    )
