"""layer_norm and rms_norm in CUDA C++: which kernels run, in which blocks."""

from __future__ import annotations

from typing import Any

from kernels.normalization.gpu_speeds import measured
from kernels.normalization.op import LAYER_NORM, RMS_NORM, LayerNormProblem, NormProblem, RMSNormProblem
from kernels.op import Implementation
from kernels.runtime.cupy_gpu import (
    DTYPES,
    as_rows,
    computed_dtype,
    contiguous,
    empty,
    empty_results,
    launch,
    numpy_dtype,
    target_of,
    types,
    vector_of,
    zero_gradients,
)
from kernels.runtime.row_blocks import MOST_KEPT, RowBlock, column_block, row_block, row_parts

Array = Any
FILE = "normalization/norm.cu"


def _flat(array: Array | None) -> Array | None:
    """weight or bias as (n,), contiguous."""
    return None if array is None else contiguous(array.reshape(-1))


def _block(p: NormProblem, target: Any, *arrays: Array | None) -> RowBlock:
    """The block for rows of arrays (rows, n) and (n,)."""
    rows, n = p.extents
    return row_block(rows, n, 1, vector_of(n, *arrays), target, MOST_KEPT[computed_dtype(p.x.dtype)])


def _constants(p: NormProblem, block: RowBlock, centred: bool) -> dict[str, int | str]:
    return types(p.x.dtype) | block.constants | {"CENTRED": int(centred)}


def _normalise(
    p: NormProblem, x: Array, weight: Array | None, bias: Array | None, *, centred: bool
) -> tuple[Array | None, ...]:
    """output, mean (None unless centred), rstd."""
    rows, n = p.extents
    wide = computed_dtype(p.x.dtype)
    out = empty(p.x.shape, p.x.dtype)
    mean = empty(p.rows_shape, wide) if p.trains and centred else None
    rstd = empty(p.rows_shape, wide) if p.trains else None
    seen, strides = as_rows(x, (rows, n))
    weights, biases = _flat(weight), _flat(bias)
    block = _block(p, target_of(x), seen, weights, biases)
    launch(
        FILE, "normalise_rows", block.grid(rows, 1), block.shape, seen, weights, biases, out, mean, rstd, rows, n,
        *strides, p.eps, block.group, constants=_constants(p, block, centred),
    )  # fmt: skip
    return out, mean, rstd


def _gradients(
    p: NormProblem, grad: Array, x: Array, weight: Array | None, mean: Array | None, rstd: Array
) -> tuple[Array | None, ...]:
    """Gradients of x, weight and bias, None for those that are not wanted."""
    rows, n = p.extents
    wants_x, wants_weight, wants_bias = (*p.needs_grad, False)[:3]
    target, wide = target_of(x), computed_dtype(p.x.dtype)
    item = numpy_dtype(wide).itemsize
    (g, g_strides), (seen, x_strides) = as_rows(grad, (rows, n)), as_rows(x, (rows, n))
    weights = _flat(weight)
    kept = (None if mean is None else contiguous(mean), contiguous(rstd))
    block = _block(p, target, g, seen, weights)
    constants = _constants(p, block, mean is not None)
    grad_x = empty(p.x.shape, p.x.dtype) if wants_x else None
    side, depth = column_block(n, block.vector, rows)
    across = -(-n // (side * block.vector))
    if block.steps:
        groups = block.side // block.group
        parts = row_parts(rows, 1, block.threads, groups, target)
    else:
        parts = row_parts(rows, across, side * depth, depth, target)
    of_weight = empty((parts.parts, n), wide) if wants_weight else None
    of_bias = empty((parts.parts, n), wide) if wants_bias else None
    strides = (*g_strides, *x_strides)
    scratch = side * depth * block.vector * item
    if block.steps:
        launch(
            FILE, "gradients_of_parts", (parts.parts,), block.shape, g, seen, weights, *kept, grad_x, of_weight,
            of_bias, rows, n, parts.part, *strides, block.group, constants=constants,
            shared_bytes=block.threads * block.steps * block.vector * item if groups > 1 else 0,
        )  # fmt: skip
    else:
        if wants_x:
            launch(
                FILE, "gradient_of_rows", block.grid(rows, 1), block.shape, g, seen, weights, *kept, grad_x, rows, n,
                *strides, block.group, constants=constants,
            )  # fmt: skip
        if wants_weight or wants_bias:
            launch(
                FILE, "sums_of_columns", (across, parts.parts), (side, depth), g, seen, *kept, of_weight, of_bias, rows,
                n, parts.part, *strides, constants=constants, shared_bytes=scratch,
            )  # fmt: skip
    found = []
    for sums in (of_weight, of_bias):
        out = None if sums is None else empty(p.normalized_shape, p.x.dtype)
        if out is not None:
            side, depth = column_block(n, block.vector, parts.parts)
            launch(
                FILE, "sum_parts", (-(-n // (side * block.vector)),), (side, depth), sums, out, parts.parts, n,
                constants=constants, shared_bytes=side * depth * block.vector * item,
            )  # fmt: skip
        found.append(out)
    return (grad_x, *found)


def layer_norm(p: LayerNormProblem, x: Array, weight: Array | None, bias: Array | None) -> tuple[Array | None, ...]:
    """output, mean, rstd."""
    return empty_results(p) if p.empty else _normalise(p, x, weight, bias, centred=True)


def layer_norm_backward(
    p: LayerNormProblem, grad_output: Array, x: Array, weight: Array | None, mean: Array, rstd: Array
) -> tuple[Array | None, ...]:
    """Gradients of x, weight and bias."""
    return zero_gradients(p) if p.empty else _gradients(p, grad_output, x, weight, mean, rstd)


def rms_norm(p: RMSNormProblem, x: Array, weight: Array | None) -> tuple[Array | None, ...]:
    """output, rstd."""
    if p.empty:
        return empty_results(p)
    output, _, rstd = _normalise(p, x, weight, None, centred=False)
    return output, rstd


def rms_norm_backward(
    p: RMSNormProblem, grad_output: Array, x: Array, weight: Array | None, rstd: Array
) -> tuple[Array | None, ...]:
    """Gradients of x and weight."""
    if p.empty:
        return zero_gradients(p)
    return _gradients(p, grad_output, x, weight, None, rstd)[:2]


def _describe(p: NormProblem) -> str:
    rows, n = p.extents
    return f"{rows} rows of {n}, threads along a row"


_FACTS: dict[str, Any] = {"dtypes": DTYPES, "describe": _describe, "measured": measured}
Implementation(LAYER_NORM, "cupy", layer_norm, layer_norm_backward, **_FACTS)
Implementation(RMS_NORM, "cupy", rms_norm, rms_norm_backward, **_FACTS)
