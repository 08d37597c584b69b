# SPDX-License-Identifier: MIT
"""A model in one GGUF file, offered under its Hugging Face names and layout."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from .checkpoint import Checkpoint, CheckpointError, bounded_slices, missing_tensor
from .gguf_architecture import GgufArchitecture
from .gguf_config import ROPE_FACTORS, gguf_config
from .gguf_file import GgufFile, GgufTensor

if TYPE_CHECKING:
    import torch

# Names of torch dtypes; torch itself is loaded when a tensor is.
_PLAIN = {
    GGMLQuantizationType.F32: "float32",
    GGMLQuantizationType.F16: "float16",
    GGMLQuantizationType.BF16: "bfloat16",
}
_QUANTISED = (
    GGMLQuantizationType.Q8_0,
    GGMLQuantizationType.Q4_0,
    GGMLQuantizationType.Q4_1,
    GGMLQuantizationType.Q4_K,
    GGMLQuantizationType.Q6_K,
)
_ROTATED = {
    ".self_attn.q_proj.": "num_attention_heads",
    ".self_attn.k_proj.": "num_key_value_heads",
}


class GgufCheckpoint(Checkpoint):
    """Tensors of a GGUF file; F32, F16 and BF16 as stored, quantised ones decoded to float32."""

    def __init__(self, path: Path) -> None:
        """Map the file, translate its metadata and names, and check its types.

        Raises:
            CheckpointError: the file is damaged, is one part of several, or its architecture, a
                tensor or a type is not supported.
        """
        file = GgufFile.open(path)
        parts = file.metadata.get("split.count", 0)
        if isinstance(parts, int) and parts > 1:
            raise CheckpointError(
                f"{path} is one of {parts} parts; join them with `llama-gguf-split --merge`"
            )
        architecture = GgufArchitecture.of(file.metadata.get("general.architecture"), path)
        self._tensors: dict[str, GgufTensor] = {}
        for tensor in file.tensors.values():
            if tensor.name != ROPE_FACTORS:
                _check_type(tensor, path)
                self._tensors[architecture.hugging_face_name(tensor.name, path)] = tensor
        self._file: GgufFile | None = file
        self._path = path
        self._config = gguf_config(file, architecture)
        self._rotates_pairs = architecture.rotates_pairs
        for name, tensor in self._tensors.items():
            heads = self._rotated_heads(name)
            if heads and (tensor.shape[0] % (2 * heads) or len(tensor.shape) > 2):
                raise CheckpointError(
                    f"tensor {tensor.name} in {path} has shape {list(tensor.shape)}, which {heads} "
                    f"heads do not divide; download the model's own GGUF file"
                )

    @property
    def config(self) -> dict[str, object]:
        """The metadata in the terms of config.json."""
        return self._config

    @property
    def names(self) -> Collection[str]:
        """The Hugging Face names of all tensors, in file order."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the whole shape of tensor `name`."""
        return self._tensor(name).shape

    def dtype(self, name: str) -> "torch.dtype":
        """Return the stored dtype, or float32 for a quantised tensor."""
        import torch

        dtype: torch.dtype = getattr(torch, _PLAIN.get(self._tensor(name).type, "float32"))
        return dtype

    def read(self, name: str, index: tuple[slice, ...] = ()) -> "torch.Tensor":
        """Return `tensor[index]`, decoding only the rows and blocks that the slice touches."""
        import torch

        tensor = self._tensor(name)
        assert self._file is not None, f"{self._path} is closed"
        *outer, inner = bounded_slices(name, tensor.shape, index)
        block, block_bytes = GGML_QUANT_SIZES[tensor.type]
        rows = self._file.rows(tensor)
        if (heads := self._rotated_heads(name)) and not outer:
            # A bias, which is never quantised: its rows are its elements.
            elements = rows.reshape(tensor.shape[0], block_bytes)
            rows = elements[_half_rows(tensor, heads)].reshape(-1)
        elif heads:
            rows = rows[_half_rows(tensor, heads)[outer[0]]]
        else:
            rows = rows[tuple(outer)]
        first = inner.start // block
        last = -(-inner.stop // block)
        stored = np.array(rows[..., first * block_bytes : last * block_bytes], copy=True, order="C")
        trim = slice(inner.start - first * block, inner.stop - first * block)
        dtype = self.dtype(name)
        if stored.size == 0 or inner.start == inner.stop:
            return torch.empty((*stored.shape[:-1], inner.stop - inner.start), dtype=dtype)
        if tensor.type in _PLAIN:
            return torch.from_numpy(stored).view(dtype)
        return torch.from_numpy(dequantize(stored, tensor.type))[..., trim].contiguous()

    def close(self) -> None:
        """Unmap the file."""
        self._file = None

    def _tensor(self, name: str) -> GgufTensor:
        if name not in self._tensors:
            raise missing_tensor(name, self._tensors, self._path)
        return self._tensors[name]

    def _rotated_heads(self, name: str) -> int:
        """Return the number of heads if the tensor's rows are ordered for pair rotation, else 0."""
        if not self._rotates_pairs:
            return 0
        for part, heads in _ROTATED.items():
            if part in name:
                count = self._config[heads]
                assert isinstance(count, int)
                return count
        return 0


def _half_rows(tensor: GgufTensor, heads: int) -> npt.NDArray[np.int64]:
    """Return the file row of every Hugging Face row: "(k i two) -> (k two i)"."""
    return np.arange(tensor.shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _check_type(tensor: GgufTensor, path: Path) -> None:
    quantised = tensor.type in _QUANTISED and len(tensor.shape) > 1
    if tensor.type not in _PLAIN and not quantised:
        supported = ", ".join(kind.name for kind in (*_PLAIN, *_QUANTISED))
        raise CheckpointError(
            f"tensor {tensor.name} in {path} is {tensor.type.name}; supported are {supported}: "
            f"choose another quantisation of the model"
        )
