"""linear_cross_entropy on GPUs: losses fused with the product where that pays, else torch's products in chunks.

Fused, no logits are in memory at all (losses_triton.py). In chunks each is written once and read once, mostly in the L2
cache, which is little beside the 2 * features operations that it costs where features are many; and cuBLAS multiplies
faster. Backward is always in chunks: the gradients of the input and of the matrix are sums over the classes and over
the rows. A fused kernel would have to add up one of them by atomics, and then no two runs had the same bits, or make
all logits anew for each block of features.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import triton

from kernels.linear import triton_gpu as linear
from kernels.linear_cross_entropy import losses_triton
from kernels.linear_cross_entropy.chunks import Parts, in_chunks
from kernels.linear_cross_entropy.chunks import describe as describe_chunks
from kernels.linear_cross_entropy.gpu_speeds import MOST_FEATURES, measured
from kernels.linear_cross_entropy.op import LINEAR_CROSS_ENTROPY, LinearCrossEntropyProblem
from kernels.linear_cross_entropy.torch_stock import cast, concatenate, expand, full
from kernels.op import Implementation
from kernels.runtime.product_tiles import ProductTile
from kernels.runtime.row_tiles import power_of_two
from kernels.runtime.targets import Target
from kernels.runtime.triton_gpu import (
    DTYPES,
    computed,
    computed_dtype,
    empty,
    launch,
    product_precision,
    target_of,
    target_of_device,
)
from kernels.runtime.tuning import asked, choose
from kernels.softmax import triton_gpu as softmax

Tensor = torch.Tensor

#: The least side of a matrix product on tensor cores that Triton takes.
LEAST = 16
#: Rows of a program that joins the parts.
JOINED_ROWS = 256


class LossTile(ProductTile):
    """Of fused losses: logits (rows, columns), `inner` features at a time."""


def loss_tile(rows: int, features: int, itemsize: int, target: Target) -> LossTile:
    """The tile for `rows` rows of logits.

    Args:
        rows: of the input.
        features: of the input.
        itemsize: bytes of an element: 2, or 4 for float32 as tf32.
        target: the GPU.
    """
    wanted = asked(LossTile)
    if wanted is not None:
        return wanted
    tall = min(max(power_of_two(rows), LEAST), 128)
    # 128 bytes of features: a line of memory.
    deep = min(max(power_of_two(features), LEAST), 128 // itemsize)
    if target.amd:
        return LossTile(min(tall, 64), 64, deep, 4, 1)
    # Found by compiling: 128 by 128 logits and their powers spill registers.
    return LossTile(tall, 64 if tall == 128 else 128, deep, 8 if tall >= 64 else 4, 3)


def parts_of_classes(programs: int, classes: int, columns: int, target: Target) -> tuple[int, int]:
    """(parts, classes of a part, whole blocks of `columns`), so that each multiprocessor has two programs.

    Args:
        programs: for each part.
        classes: how many there are.
        columns: of the tile.
        target: the GPU.
    """
    blocks = -(-classes // columns)
    parts = max(1, min(-(-2 * target.multiprocessors // programs), blocks))
    part = -(-blocks // parts) * columns
    return -(-classes // part), part


def _precision(dtype: torch.dtype, target: Target) -> str:
    """How products of float32 are taken: as torch's own are set."""
    return product_precision(dtype, target, tf32=torch.get_float32_matmul_precision() != "highest")


def _fuses(p: LinearCrossEntropyProblem, target: Target) -> bool:
    """Whether the forward pass has no logits in memory: of class indices, on tensor cores, with few features."""
    dtype = getattr(torch, p.input.dtype)
    cores = p.input.itemsize == 2 or _precision(dtype, target) == "tf32"
    return p.indexed and p.inner == 1 and cores and 0 < p.in_features <= MOST_FEATURES and p.rows > 0


def _losses(
    p: LinearCrossEntropyProblem, x: Tensor, matrix: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """loss, maximum, log_sum of each row, each (rows, 1); None where they are to be made in chunks."""
    gpu = target_of(x)
    if not _fuses(p, gpu):
        return None
    rows, features, classes, device = p.rows, p.in_features, p.classes, x.device
    tile = choose("losses", p, gpu, loss_tile(rows, features, x.element_size(), gpu))
    blocks = triton.cdiv(rows, tile.rows)
    parts, part = parts_of_classes(blocks, classes, tile.columns, gpu)
    wide, smooth = computed_dtype(x.dtype), p.label_smoothing != 0
    maxima, totals, of_class = (empty((parts, rows), wide, device) for _ in range(3))
    dense = empty((parts, rows), wide, device) if smooth else None
    sums = empty((parts,), wide, device) if smooth else None
    weighted: dict[str, Any] = {"WEIGHTED": weight is not None, "COMPUTED": computed(x.dtype)}
    weight_n = 0 if weight is None else weight.stride(0)
    launch(
        losses_triton.statistics_of_products, (blocks * parts,), x, matrix, None if bias is None else bias.contiguous(),
        target, weight, maxima, totals, of_class, dense, sums, rows, features, classes, part,
        *x.stride(), *matrix.stride(), target.stride(0), weight_n, HAS_BIAS=bias is not None, SMOOTH=smooth,
        WHOLE=features % tile.inner == 0, ROWS=tile.rows, COLUMNS=tile.columns, INNER=tile.inner,
        PRECISION=_precision(x.dtype, gpu), **weighted, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    losses = empty((rows, 1), wide, device)
    maximum, log_sum = (empty((rows, 1), wide, device) if p.trains else None for _ in range(2))
    launch(
        losses_triton.losses_of_parts, (triton.cdiv(rows, JOINED_ROWS),), maxima, totals, of_class, dense, sums, target,
        weight, losses, maximum, log_sum, rows, classes, parts, target.stride(0), weight_n, p.ignore_index,
        SMOOTHING=p.label_smoothing, KEEPS=p.trains, BLOCK=JOINED_ROWS, **weighted, num_warps=4,
    )  # fmt: skip
    return losses, maximum, log_sum


def _describe(p: LinearCrossEntropyProblem) -> str:
    if _fuses(p, target_of_device(torch.device(p.input.device).index)):
        return f"losses without logits in memory; backward {describe_chunks(p)}"
    return describe_chunks(p)


_PARTS = Parts(
    linear.linear, linear.linear_backward, softmax.cross_entropy, softmax.cross_entropy_backward,
    cast, concatenate, expand, full, operator.iadd, losses=_losses,
)  # fmt: skip
Implementation(
    LINEAR_CROSS_ENTROPY, "triton", *in_chunks(_PARTS), dtypes=DTYPES, describe=_describe, measured=measured
)
