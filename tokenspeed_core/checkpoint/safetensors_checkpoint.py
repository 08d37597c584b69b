# SPDX-License-Identifier: MIT
"""A Hugging Face model directory: config.json and one or more safetensors files."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from .checkpoint import Checkpoint, CheckpointError, bounded_slices, missing_tensor

if TYPE_CHECKING:
    import torch

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

# Names of torch dtypes; torch itself is loaded when a tensor is.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class SafetensorsCheckpoint(Checkpoint):
    """Tensors of `model.safetensors`, or of the shards that its index file lists."""

    def __init__(self, directory: Path) -> None:
        """Open all files of `directory` and check that each holds what the index promises.

        Raises:
            CheckpointError: a file is missing, truncated or no safetensors file, or lacks a tensor.
        """
        self._directory = directory
        self._config = _read_object(directory / "config.json", "the model's configuration")
        self._shards: dict[str, Any] = {}
        self._readers: dict[str, Any] = {}
        try:
            if (directory / INDEX_NAME).exists():
                self._shard_of = self._open_shards()
            else:
                shard = self._open(SINGLE_NAME)
                self._shard_of = {name: SINGLE_NAME for name in shard.keys()}  # noqa: SIM118
        except CheckpointError:
            self.close()
            raise
        if "lm_head.weight" not in self._shard_of:
            self._config.setdefault("tie_word_embeddings", True)

    @property
    def config(self) -> dict[str, object]:
        """The contents of `config.json`."""
        return self._config

    @property
    def names(self) -> Collection[str]:
        """All tensor names, in file order."""
        return self._shard_of.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the whole shape of tensor `name`."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> "torch.dtype":
        """Return the stored dtype of tensor `name`."""
        stored = self._slice(name).get_dtype()
        if stored not in _DTYPES:
            raise CheckpointError(
                f"tensor {name} in {self._directory} has dtype {stored}; "
                f"supported are {', '.join(_DTYPES)}"
            )
        import torch

        dtype: torch.dtype = getattr(torch, _DTYPES[stored])
        return dtype

    def read(self, name: str, index: tuple[slice, ...] = ()) -> "torch.Tensor":
        """Return `tensor[index]` in the stored dtype."""
        bounded = bounded_slices(name, self.shape(name), index)
        shard = self._shard_of[name]
        if shard not in self._readers:
            self._readers[shard] = safe_open(str(self._directory / shard), framework="pt")
        reader = self._readers[shard]
        if not bounded:
            tensor: torch.Tensor = reader.get_tensor(name)
            return tensor
        part: torch.Tensor = reader.get_slice(name)[bounded]
        return part.contiguous()

    def close(self) -> None:
        """Unmap the files."""
        for file in (*self._shards.values(), *self._readers.values()):
            file.__exit__(None, None, None)
        self._shards.clear()
        self._readers.clear()

    def _slice(self, name: str) -> Any:
        if name not in self._shard_of:
            raise missing_tensor(name, self._shard_of, self._directory)
        return self._shards[self._shard_of[name]].get_slice(name)

    def _open_shards(self) -> dict[str, str]:
        index = _read_object(self._directory / INDEX_NAME, "the list of weight files")
        listed = index.get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise CheckpointError(
                f"{self._directory / INDEX_NAME} has no weight_map; download it again"
            )
        for shard in listed.values():
            # A name with a directory in it could lead out of the model's own.
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise CheckpointError(
                    f"{self._directory / INDEX_NAME} names weight file {shard!r}, which is no "
                    f"plain file name; download it again"
                )
        stored = {name: set(self._open(name).keys()) for name in sorted(set(listed.values()))}
        for tensor, shard in listed.items():
            if tensor not in stored[shard]:
                raise CheckpointError(
                    f"{self._directory / shard} lacks tensor {tensor} that {INDEX_NAME} places "
                    f"there; download both again"
                )
        return listed

    def _open(self, name: str) -> Any:
        path = self._directory / name
        if not path.is_file():
            raise CheckpointError(
                f"weight file {path} is missing; {INDEX_NAME} lists it: download it again"
            )
        try:
            self._shards[name] = safe_open(str(path), framework="np")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} ({path.stat().st_size} bytes) is no complete safetensors file: {error}; "
                f"download it again"
            ) from error
        return self._shards[name]


def _read_object(path: Path, what: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing ({what}); download the whole model") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({what}): {error}; download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object ({what}); download it again")
    return value
