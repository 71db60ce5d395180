"""A convolution's weight in the order in which its products read it: the kernel of weights.cu."""

from __future__ import annotations

from typing import Any

from kernels.conv2d.cuda_tiles import LEAST_COLUMNS, PACKED_LINES, lines_of_weight
from kernels.runtime.cuda_tiles import FLAT_THREADS
from kernels.runtime.cupy_gpu import dtype_name, element_strides, empty, index_type, launch, types

Array = Any


def packed_weight(weight: Array, groups: int, columns_of_tile: int, transposed: bool) -> Array:
    """The weight as product.cu reads it: (groups, taps, inner channels, columns), zeros up to whole tiles.

    Args:
        weight: (K, C, kh, kw), in any strides.
        groups: of the convolution, which cut K.
        columns_of_tile: what the columns are filled up to a multiple of, itself one of `LEAST_COLUMNS`.
        transposed: columns are C, inner channels K / groups; else columns are K / groups, inner channels C.
    """
    of_k, of_c, *of_taps = element_strides(weight)
    kernel = weight.shape[2:]
    outer, channels = weight.shape[0] // groups, weight.shape[1]
    inner, columns = (outer, channels) if transposed else (channels, outer)
    of_inner, of_column = (of_k, of_c) if transposed else (of_c, of_k)
    line = -(-columns // columns_of_tile) * columns_of_tile
    taps = kernel[0] * kernel[1]
    packed = empty((groups, taps, inner, line), dtype_name(weight))
    depth, fast, inner_fastest = lines_of_weight(taps, of_inner, of_column, of_taps)
    tiles = line // LEAST_COLUMNS * -(-taps * inner // depth)
    launch(
        "conv2d/weights.cu", "pack_weight", (tiles, groups), (FLAT_THREADS,), weight, packed, inner, columns, line,
        depth, fast, int(inner_fastest), *kernel, outer * of_k, of_inner, of_column, *of_taps,
        constants=types(dtype_name(weight)) | {
            "INDEX": index_type(weight, packed),
            "THREADS": FLAT_THREADS,
            "COLUMNS": LEAST_COLUMNS,
            "LINES": PACKED_LINES,
        },
    )  # fmt: skip
    return packed
