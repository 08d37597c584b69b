# SPDX-License-Identifier: MIT
"""Tile sizes of skinny products: measured where they are listed, a rule elsewhere."""

import attrs
import triton

from .device import Device


@attrs.frozen
class Tile:
    """Sizes of one launch: outputs and inputs a program, parts of the inputs, pipeline stages."""

    outputs: int
    inputs: int
    splits: int = 1
    stages: int = 4
    warps: int = 4


# Keyed by the (rows, columns) of the stored matrix.  See kernels/NOTES.md for times.
_VECTOR = {
    (6144, 4096): Tile(8, 256),
    (4096, 4096): Tile(8, 512),
    (24576, 4096): Tile(2, 2048),
    (4096, 12288): Tile(4, 2048),
    (151936, 4096): Tile(8, 2048),
    (4096, 1024): Tile(4, 1024),
    (1024, 2048): Tile(4, 1024),
    (6144, 1024): Tile(4, 1024),
    (1024, 3072): Tile(2, 512),
    (151936, 1024): Tile(8, 1024),
    (5120, 2048): Tile(4, 2048),
    (2048, 4096): Tile(4, 512),
    (3648, 2048): Tile(4, 2048),
    (2048, 2048): Tile(2, 2048),
}
_MATRIX = {
    (6144, 4096): Tile(32, 256, stages=3),
    (4096, 4096): Tile(32, 256, stages=5),
    (24576, 4096): Tile(32, 128, stages=3),
    (4096, 12288): Tile(32, 256, stages=5),
    (4096, 1024): Tile(32, 256, stages=3),
    (1024, 2048): Tile(32, 64, splits=4, stages=5),
    (6144, 1024): Tile(32, 256, stages=3),
    (1024, 3072): Tile(32, 128, splits=4, stages=5),
}
# Of a matrix in float8 with scales of blocks, tiles divide the blocks.
FLOAT8_ROWS, FLOAT8_INPUTS = 32, 128


def vector_tile(rows: int, columns: int, device: Device, narrow: bool = False) -> Tile:
    """Return the tile of a product of one row with a stored `[rows, columns]`.

    `narrow`: the matrix is in float8.
    """
    found = _VECTOR.get((rows, columns))
    if narrow:
        # Of eight bits short pieces were the best in four shapes on an H200.
        found = Tile(8, min(triton.next_power_of_2(columns), 512), stages=3)
    elif found is None:
        # Many rows are bound by memory alone, whose bursts are longer.
        found = Tile(8, _piece(columns, 512 if rows >= 64 * device.processors else 256))
    return attrs.evolve(found, stages=min(found.stages, device.max_stages))


def matrix_tile(
    rows: int, columns: int, device: Device, itemsize: int, gated: bool, narrow: bool = False
) -> Tile:
    """Return the tile of a product of 2 to 16 rows with a stored `[rows, columns]`.

    A `gated` one reads all inputs in one program; `narrow`: the matrix is in float8.
    """
    found = _MATRIX.get((rows, columns))
    if narrow:
        wide = columns >= 1024
        found = Tile(32, 256 if wide and not gated else 128, splits=1 + wide, stages=5)
    elif found is None:
        # Long rows are read in longer pieces, in parts where tiles alone would not fill the device.
        tiles = -(-rows // 32)
        long, splits = columns >= 4096, 1
        if long and not gated and tiles <= 2 * device.processors:
            splits = 4 if 4 * tiles < 3 * device.processors else 2
        inputs, stages = (256, 3) if long else (128, 5)
        found = Tile(32, _piece(columns // splits, inputs), splits, stages)
    if gated:
        found = attrs.evolve(found, splits=1)
    # A tile of float32 is twice as large, and its product keeps more in registers.
    inputs = found.inputs if itemsize <= 2 else min(found.inputs, 64)
    stages = min(found.stages, device.max_stages)
    while (16 + 32 * (1 + gated)) * inputs * stages * itemsize > device.shared_bytes:
        inputs //= 2
    return attrs.evolve(found, inputs=inputs, stages=stages)


def _piece(columns: int, most: int) -> int:
    """Return how many inputs are read at once: where that divides all, none are masked."""
    even = min(columns & -columns, most)
    return even if even >= 64 else min(triton.next_power_of_2(columns), most)
