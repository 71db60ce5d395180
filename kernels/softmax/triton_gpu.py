"""softmax, log_softmax and cross_entropy in Triton: which kernel runs, on which tile."""

from __future__ import annotations

from typing import Any

import torch
import triton

from kernels.op import Implementation
from kernels.runtime.row_tiles import row_tile
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
from kernels.softmax import cross_entropy_triton, softmax_triton
from kernels.softmax.op import CROSS_ENTROPY, LOG_SOFTMAX, SOFTMAX, CrossEntropyProblem, SoftmaxProblem

Tensor = torch.Tensor

#: The losses of so many rows at least are summed by a program, and by so many programs at most.
LEAST_ROWS, MOST_PARTS = 4096, 256
SUM_BLOCK = 1024


def _tile(
    p: SoftmaxProblem | CrossEntropyProblem, kernel: str, tensor: Tensor
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """(grid, the constants of a kernel that say its tile)."""
    outer, n, inner = p.extents
    target = target_of(tensor)
    wide = tensor.dtype == torch.float64
    tile = choose(kernel, p, target, row_tile(outer * inner, n, inner, target, float64=wide))
    grid = (outer * triton.cdiv(inner, tile.rows) if inner > 1 else triton.cdiv(outer, tile.rows),)
    constants = {
        "SIDE": inner > 1,
        "WHOLE": tile.whole,
        "ROWS": tile.rows,
        "BLOCK": tile.block,
        "COMPUTED": computed(tensor.dtype),
        "num_warps": tile.warps,
    }
    if target.name == "sm_80" and isinstance(p, CrossEntropyProblem) and tile.warps <= 4:
        # Left to itself, the assembler spills one number for the sake of another program.
        constants["maxnreg"] = 255
    return grid, constants


def softmax(p: SoftmaxProblem, x: Tensor) -> tuple[Tensor | None, ...]:
    """softmax or log_softmax, contiguous."""
    if p.empty:
        return empty_results(p, x.device)
    out = empty(p.x.shape, x.dtype, x.device)
    grid, constants = _tile(p, "softmax_rows", x)
    seen, strides = as_rows(x, p.extents)
    kernel = softmax_triton.softmax_rows
    launch(kernel, grid, seen, out, *p.extents, *strides, IS_LOG=p.op == "log_softmax", **constants)
    return (out,)


def softmax_backward(p: SoftmaxProblem, grad_output: Tensor, output: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of x, contiguous."""
    if p.empty:
        return zero_gradients(p, output.device)
    out = empty(p.x.shape, output.dtype, output.device)
    grid, constants = _tile(p, "softmax_gradient_rows", output)
    (grad, grad_strides), (y, y_strides) = as_rows(grad_output, p.extents), as_rows(output, p.extents)
    kernel = softmax_triton.softmax_gradient_rows
    strides = (*p.extents, *grad_strides, *y_strides)
    launch(kernel, grid, grad, y, out, *strides, IS_LOG=p.op == "log_softmax", **constants)
    return (out,)


def _target(p: CrossEntropyProblem, target: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """(target, its strides in outer, n and inner), 0 in n for class indices."""
    outer, _, inner = p.extents
    if not p.indexed:
        return as_rows(target, p.extents)
    seen, (of_outer, of_inner) = as_rows(target, (outer, inner))
    return seen, (of_outer, 0, of_inner)


def _options(p: CrossEntropyProblem, weight: Tensor | None) -> dict[str, Any]:
    return {"SMOOTHING": p.label_smoothing, "INDEXED": p.indexed, "WEIGHTED": weight is not None}


def cross_entropy(
    p: CrossEntropyProblem, input: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor | None, ...]:
    """loss, maximum, log_sum, divisor."""
    outer, n, inner = p.extents
    if n == 0 or outer * inner == 0:
        return _nothing_to_average(p, input)
    device, each = input.device, p.reduction == "none"
    wide = computed_dtype(input.dtype)
    losses = empty(p.rows_shape, input.dtype if each else wide, device)
    maxima = empty(p.rows_shape, wide, device) if p.trains else None
    log_sums = empty(p.rows_shape, wide, device) if p.trains else None
    grid, constants = _tile(p, "losses_of_rows", input)
    (x, x_strides), (t, t_strides) = as_rows(input, p.extents), _target(p, target)
    weight_n = 0 if weight is None else weight.stride(0)
    launch(
        cross_entropy_triton.losses_of_rows, grid, x, t, weight, losses, maxima, log_sums, *p.extents,
        *x_strides, *t_strides, weight_n, p.ignore_index, **_options(p, weight), KEEPS=p.trains, **constants,
    )  # fmt: skip
    if each:
        return losses, maxima, log_sums, None
    loss, divisor = _reduce(p, losses, t, t_strides, weight, weight_n)
    return (loss, maxima, log_sums, divisor) if p.trains else (loss, None, None, None)


def _reduce(
    p: CrossEntropyProblem, losses: Tensor, target: Tensor, strides: tuple[int, ...], weight: Tensor | None, step: int
) -> tuple[Tensor, Tensor | None]:
    """(loss, divisor), 0-d."""
    rows, device, mean = losses.numel(), losses.device, p.reduction == "mean"
    of_part = max(LEAST_ROWS, triton.cdiv(rows, MOST_PARTS))
    parts = triton.cdiv(rows, of_part)
    sums = empty((parts,), losses.dtype, device)
    counts = empty((parts,), losses.dtype, device) if mean else None
    loss = empty((), getattr(torch, p.input.dtype), device)
    divisor = empty((), losses.dtype, device) if mean and p.trains else None
    wide = computed(losses.dtype)
    options = _options(p, weight)
    del options["SMOOTHING"]
    launch(
        cross_entropy_triton.sum_losses, (parts,), losses, target, weight, sums, counts, rows, *p.extents[1:],
        strides[0], strides[2], step, p.ignore_index, of_part, **options, MEAN=mean, BLOCK=SUM_BLOCK, COMPUTED=wide,
        num_warps=4,
    )  # fmt: skip
    launch(
        cross_entropy_triton.finish_loss, (1,), sums, counts, loss, divisor, parts,
        MEAN=mean, KEEPS=divisor is not None, BLOCK=MOST_PARTS, COMPUTED=wide, num_warps=4,
    )  # fmt: skip
    return loss, divisor


def _nothing_to_average(p: CrossEntropyProblem, input: Tensor) -> tuple[Tensor | None, ...]:
    """The results without classes or without rows: losses of 0, whose mean is NaN."""
    forms = p.results()
    fill = (float("nan") if p.reduction == "mean" else 0.0, -float("inf"), -float("inf"), 0.0)
    return tuple(
        None if form is None else torch.full(form.shape, number, dtype=getattr(torch, form.dtype), device=input.device)
        for form, number in zip(forms, fill)
    )


def cross_entropy_backward(
    p: CrossEntropyProblem,
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    maximum: Tensor,
    log_sum: Tensor,
    divisor: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of input and of target probabilities."""
    wants_x, wants_soft = p.needs_grad[0], p.needs_grad[1] and not p.indexed
    if p.input.size == 0:
        return zero_gradients(p, input.device)
    outer, _, inner = p.extents
    grad_x = empty(p.input.shape, input.dtype, input.device) if wants_x else None
    grad_soft = empty(p.input.shape, input.dtype, input.device) if wants_soft else None
    grid, constants = _tile(p, "gradient_of_rows", input)
    (x, x_strides), (t, t_strides) = as_rows(input, p.extents), _target(p, target)
    grad, grad_strides = as_rows(grad_loss, (outer, inner)) if p.reduction == "none" else (grad_loss, (0, 0))
    launch(
        cross_entropy_triton.gradient_of_rows, grid, grad, x, t, weight, maximum.contiguous(), log_sum.contiguous(),
        divisor, grad_x, grad_soft, *p.extents, *grad_strides, *x_strides, *t_strides,
        0 if weight is None else weight.stride(0), p.ignore_index, **_options(p, weight), MEAN=divisor is not None,
        WANTS_X=wants_x, WANTS_SOFT=wants_soft, **constants,
    )  # fmt: skip
    return grad_x, grad_soft, None


def _words(rows: int, n: int, inner: int) -> str:
    where = "along the rows" if inner == 1 else "across the inner dimensions"
    return f"{rows} rows of {n}, threads {where}"


def _describe_softmax(p: SoftmaxProblem) -> str:
    outer, n, inner = p.extents
    return _words(outer * inner, n, inner)


def _describe_cross_entropy(p: CrossEntropyProblem) -> str:
    outer, n, inner = p.extents
    return _words(outer * inner, n, inner)


Implementation(SOFTMAX, "triton", softmax, softmax_backward, dtypes=DTYPES, describe=_describe_softmax)
Implementation(LOG_SOFTMAX, "triton", softmax, softmax_backward, dtypes=DTYPES, describe=_describe_softmax)
Implementation(
    CROSS_ENTROPY, "triton", cross_entropy, cross_entropy_backward, dtypes=DTYPES, describe=_describe_cross_entropy
)
