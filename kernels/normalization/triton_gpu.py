"""layer_norm and rms_norm in Triton: which kernels run, on which tile."""

from __future__ import annotations

from typing import Any

import torch
import triton

from kernels.normalization import rows_triton
from kernels.normalization.gpu_speeds import measured
from kernels.normalization.op import LAYER_NORM, RMS_NORM, LayerNormProblem, NormProblem, RMSNormProblem
from kernels.op import Implementation
from kernels.runtime.row_tiles import RowTile, row_tile
from kernels.runtime.rows_triton import add_parts
from kernels.runtime.targets import Target
from kernels.runtime.triton_gpu import (
    DTYPES,
    as_rows,
    computed,
    computed_dtype,
    empty,
    empty_results,
    launch,
    target_of,
    zero_gradients,
)
from kernels.runtime.tuning import choose

Tensor = torch.Tensor

#: The longest row of which backward keeps gradient, row and both sums: 16 elements of each of 512 threads.
LONGEST_BACKWARD = 8192
#: Registers of a thread, told to NVIDIA's assembler for programs of so many warps: left to itself it spills one number
#: of bfloat16's kernel to stay at 64.
REGISTERS, MOST_WARPS = 255, 4
#: Columns and rows of the tiles that add up what longer rows give to weight and bias: a vector of 128 bits a thread.
LONG_COLUMNS, LONG_ROWS = 1024, 2


def _normalise(
    p: NormProblem, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, centred: bool
) -> tuple[Tensor | None, ...]:
    """output, mean (None unless centred), rstd."""
    rows, n = p.extents
    device = x.device
    out = empty(p.x.shape, x.dtype, device)
    wide = computed_dtype(x.dtype)
    mean = empty(p.rows_shape, wide, device) if p.trains and centred else None
    rstd = empty(p.rows_shape, wide, device) if p.trains else None
    target = target_of(x)
    tile = choose("normalise_rows", p, target, row_tile(rows, n, 1, target, float64=wide == torch.float64))
    seen, strides = as_rows(x, (rows, n))
    (weights, weight_n), (biases, bias_n) = _flat(weight), _flat(bias)
    launch(
        rows_triton.normalise_rows, (triton.cdiv(rows, tile.rows),), seen, weights, biases, out, mean, rstd, rows, n,
        *strides, weight_n, bias_n, EPS=p.eps, CENTRED=centred, HAS_WEIGHT=weight is not None,
        HAS_BIAS=bias is not None, KEEPS=p.trains, WHOLE=tile.whole, ROWS=tile.rows, BLOCK=tile.block,
        COMPUTED=computed(x.dtype), num_warps=tile.warps,
    )  # fmt: skip
    return out, mean, rstd


def _flat(array: Tensor | None) -> tuple[Tensor | None, int]:
    """(weight or bias as (n,), its stride)."""
    if array is None:
        return None, 0
    flat = array.reshape(-1)
    return flat, flat.stride(0)


def parts_of(rows: int, tile: RowTile, target: Target) -> tuple[int, int]:
    """(parts that the rows are cut into, rows of a part): two parts for each multiprocessor, as long as rows last.

    The parts' sums are added in one order, so results have the same bits on every GPU of a kind.
    """
    tiles = triton.cdiv(rows, tile.rows)
    part = tile.rows * triton.cdiv(tiles, 2 * target.multiprocessors)
    return triton.cdiv(rows, part), part


def _gradients(
    p: NormProblem, grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor | None, rstd: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and bias, None for those that are not wanted."""
    rows, n = p.extents
    wants_x, wants_weight, wants_bias = (*p.needs_grad, False)[:3]
    device, wide, target = x.device, computed_dtype(x.dtype), target_of(x)
    float64 = wide == torch.float64
    # Of float64 4096 elements are too many for sm_100's registers.
    longest = LONGEST_BACKWARD // 2 if float64 and target.name == "sm_100" else LONGEST_BACKWARD
    tile = row_tile(rows, n, 1, target, longest, float64=float64)
    tile = choose("gradients_of_parts", p, target, tile)
    columns = min(LONG_COLUMNS, tile.block)
    parts, part = parts_of(rows, tile if tile.whole else RowTile(LONG_ROWS, columns, False, 8), target)
    grad_x = empty(p.x.shape, x.dtype, device) if wants_x else None
    of_weight = empty((parts, n), wide, device) if wants_weight else None
    of_bias = empty((parts, n), wide, device) if wants_bias else None
    (g, g_strides), (seen, x_strides) = as_rows(grad, (rows, n)), as_rows(x, (rows, n))
    weights, weight_n = _flat(weight)
    kept = (None if mean is None else mean.contiguous(), rstd.contiguous())
    options = {"CENTRED": mean is not None, "COMPUTED": computed(x.dtype), "num_warps": tile.warps}
    if tile.whole and tile.warps <= MOST_WARPS and not target.amd:
        options["maxnreg"] = REGISTERS
    wants = {"WANTS_WEIGHT": wants_weight, "WANTS_BIAS": wants_bias}
    strides = (*g_strides, *x_strides)
    if tile.whole:
        launch(
            rows_triton.gradients_of_parts, (parts,), g, seen, weights, *kept, grad_x, of_weight, of_bias, rows, n,
            part, *strides, weight_n, **options, **wants, HAS_WEIGHT=weight is not None, WANTS_X=wants_x,
            ROWS=tile.rows, BLOCK=tile.block,
        )  # fmt: skip
    else:
        if wants_x:
            launch(
                rows_triton.gradient_of_long_rows, (rows,), g, seen, weights, *kept, grad_x, rows, n, *strides,
                weight_n, **options, HAS_WEIGHT=weight is not None, BLOCK=tile.block,
            )  # fmt: skip
        if wants_weight or wants_bias:
            launch(
                rows_triton.sums_of_columns, (triton.cdiv(n, columns), parts), g, seen, *kept, of_weight, of_bias,
                rows, n, part, *strides, **options, **wants, ROWS=LONG_ROWS, BLOCK=columns,
            )  # fmt: skip
    return grad_x, _summed(p, of_weight, x), _summed(p, of_bias, x)


def _summed(p: NormProblem, of_parts: Tensor | None, x: Tensor) -> Tensor | None:
    """The sum over the parts (parts, n), in the shape and dtype of weight and bias."""
    if of_parts is None:
        return None
    out = empty(p.normalized_shape, x.dtype, x.device)
    add_parts(of_parts, out)
    return out


def layer_norm(p: LayerNormProblem, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """output, mean, rstd."""
    return empty_results(p, x.device) if p.empty else _normalise(p, x, weight, bias, centred=True)


def layer_norm_backward(
    p: LayerNormProblem, grad_output: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and bias."""
    return zero_gradients(p, x.device) if p.empty else _gradients(p, grad_output, x, weight, mean, rstd)


def rms_norm(p: RMSNormProblem, x: Tensor, weight: Tensor | None) -> tuple[Tensor | None, ...]:
    """output, rstd."""
    if p.empty:
        return empty_results(p, x.device)
    output, _, rstd = _normalise(p, x, weight, None, centred=False)
    return output, rstd


def rms_norm_backward(
    p: RMSNormProblem, grad_output: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of x and weight."""
    if p.empty:
        return zero_gradients(p, x.device)
    return _gradients(p, grad_output, x, weight, None, rstd)[:2]


def _describe(p: NormProblem) -> str:
    rows, n = p.extents
    return f"{rows} rows of {n}, threads along a row"


_FACTS: dict[str, Any] = {"dtypes": DTYPES, "describe": _describe, "measured": measured}
Implementation(LAYER_NORM, "triton", layer_norm, layer_norm_backward, **_FACTS)
Implementation(RMS_NORM, "triton", rms_norm, rms_norm_backward, **_FACTS)
