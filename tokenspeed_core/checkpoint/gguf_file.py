# SPDX-License-Identifier: MIT
"""The GGUF container: metadata, a tensor table and aligned tensor bytes.

The `gguf` library has a reader, but it makes several arrays of every vocabulary entry (seconds for
a real tokenizer) and walks past the end of a damaged file; its types and dequantisation are used.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from .checkpoint import CheckpointError

_VERSIONS = (2, 3)
_SCALARS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
_MAX_DIMENSIONS = 4


@attrs.frozen
class GgufTensor:
    """One row of the tensor table; `shape` is slowest dimension first, as torch has it."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    row_bytes: int  # bytes of the last dimension


@attrs.frozen(eq=False)
class GgufFile:
    """A mapped GGUF file.

    Metadata values are int, float, bool, str, or a list of them.
    """

    path: Path
    metadata: dict[str, object]
    tensors: dict[str, GgufTensor]
    data: npt.NDArray[np.uint8]

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Map the file and read its tables.

        Raises:
            CheckpointError: it is no little-endian GGUF file of version 2 or 3, or it is truncated
                or damaged.
        """
        if path.stat().st_size < 24:
            raise _damaged(path, f"is only {path.stat().st_size} bytes long")
        data = np.memmap(path, dtype=np.uint8, mode="r")
        header = _Header(path, data)
        if bytes(data[:4]) != b"GGUF":
            raise CheckpointError(
                f"{path} starts with {bytes(data[:4])!r}, not b'GGUF'; is it a Git LFS pointer? "
                f"download the file itself"
            )
        header.at = 4
        version = header.integer("<I")
        if version not in _VERSIONS:
            raise CheckpointError(
                f"{path} is GGUF version {version} or big-endian; versions "
                f"{' and '.join(map(str, _VERSIONS))} in little-endian order are supported: "
                f"convert the model again"
            )
        tensor_count, value_count = header.integer("<Q"), header.integer("<Q")
        metadata = {}
        for _ in range(value_count):
            key = header.string()
            metadata[key] = header.value(header.value_type())
        rows = [header.tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise _damaged(path, f"has general.alignment {alignment!r}")
        start = -(-header.at // alignment) * alignment
        tensors = {row.name: attrs.evolve(row, offset=start + row.offset) for row in rows}
        for tensor in tensors.values():
            end = tensor.offset + tensor.row_bytes * math.prod(tensor.shape[:-1])
            if end > data.size:
                raise _damaged(
                    path, f"is {data.size} bytes long but tensor {tensor.name} ends at {end}"
                )
        return cls(path, metadata, tensors, data)

    def rows(self, tensor: GgufTensor) -> npt.NDArray[np.uint8]:
        """Return the stored bytes of a tensor as a view of shape (*shape[:-1], row_bytes)."""
        shape = (*tensor.shape[:-1], tensor.row_bytes)
        return self.data[tensor.offset : tensor.offset + math.prod(shape)].reshape(shape)


class _Header:
    """A read position in the tables; every read is checked against the file's end."""

    def __init__(self, path: Path, data: npt.NDArray[np.uint8]) -> None:
        self.path = path
        self.at = 0
        self._bytes = data.data

    def take(self, count: int) -> memoryview:
        if count > len(self._bytes) - self.at:
            raise _damaged(self.path, f"ends inside its tables, near byte {self.at}")
        self.at += count
        return self._bytes[self.at - count : self.at]

    def integer(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def string(self) -> str:
        # Vocabularies may hold bytes that are no UTF-8 on their own.
        return str(self.take(self.integer("<Q")), "utf-8", "surrogateescape")

    def value_type(self) -> GGUFValueType:
        number = self.integer("<I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise _damaged(
                self.path, f"has metadata of type {number} near byte {self.at}"
            ) from None

    def value(self, kind: GGUFValueType) -> object:
        if kind is GGUFValueType.STRING:
            return self.string()
        if kind is GGUFValueType.ARRAY:
            return self.array()
        return struct.unpack(_SCALARS[kind], self.take(struct.calcsize(_SCALARS[kind])))[0]

    def array(self) -> list[object]:
        kind, count = self.value_type(), self.integer("<Q")
        if kind is GGUFValueType.ARRAY:
            raise _damaged(self.path, f"has an array of arrays near byte {self.at}")
        if kind is GGUFValueType.STRING:
            return [self.string() for _ in range(count)]
        form = _SCALARS[kind]
        stored = self.take(count * struct.calcsize(form))
        values: list[object] = np.frombuffer(stored, dtype=form).tolist()
        return values

    def tensor(self) -> GgufTensor:
        name = self.string()
        dimensions = self.integer("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise _damaged(self.path, f"has tensor {name} with {dimensions} dimensions")
        # The file lists the fastest dimension first.
        shape = tuple(reversed([self.integer("<Q") for _ in range(dimensions)]))
        number, offset = self.integer("<I"), self.integer("<Q")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise _damaged(self.path, f"has tensor {name} of unknown type {number}") from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise _damaged(
                self.path,
                f"has tensor {name} with rows of {shape[-1]} elements in {kind.name} "
                f"blocks of {block}",
            )
        return GgufTensor(name, kind, shape, offset, shape[-1] // block * block_bytes)


def _damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(f"{path} {how}: it is damaged or incomplete; download it again")
