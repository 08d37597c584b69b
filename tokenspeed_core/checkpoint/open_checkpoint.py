# SPDX-License-Identifier: MIT
"""The choice of a reader for the file or directory that holds a model."""

from pathlib import Path

from .checkpoint import Checkpoint, CheckpointError
from .float8_checkpoint import Float8Checkpoint
from .gguf_checkpoint import GgufCheckpoint
from .safetensors_checkpoint import INDEX_NAME, SINGLE_NAME, SafetensorsCheckpoint

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a Hugging Face directory with safetensors files, or a GGUF file.

    A directory with exactly one `.gguf` file and no safetensors stands for that file.

    Raises:
        CheckpointError: nothing readable is there, or it is damaged, incomplete, pickled or of an
            unknown architecture or quantisation.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a model directory or a .gguf file")
    if path.is_file():
        if path.suffix == ".gguf":
            return GgufCheckpoint(path)
        if path.suffix in _PICKLED:
            raise _pickled(path)
        raise CheckpointError(
            f"{path} is no .gguf file; for safetensors give the directory that holds config.json"
        )
    if (path / INDEX_NAME).exists() or (path / SINGLE_NAME).exists():
        return Float8Checkpoint.around(SafetensorsCheckpoint(path))
    files = sorted(file for file in path.iterdir() if file.is_file())
    quantised = [file for file in files if file.suffix == ".gguf"]
    if len(quantised) == 1:
        return GgufCheckpoint(quantised[0])
    if quantised:
        raise CheckpointError(
            f"{path} holds {len(quantised)} GGUF files ({', '.join(f.name for f in quantised)}); "
            f"name one of them"
        )
    pickled = [file for file in files if file.suffix in _PICKLED]
    if pickled:
        raise _pickled(pickled[0])
    raise CheckpointError(
        f"{path} holds no weights: no {SINGLE_NAME}, {INDEX_NAME} or .gguf file; "
        f"download the model's weights into it"
    )


def _pickled(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a pickled checkpoint, which can run code when it is read; "
        f"convert it to safetensors"
    )
