"""softmax, log_softmax and cross_entropy as NumPy equations: the oracle that every kernel is held to.

With m the maximum and l the logarithm of sum(exp(x - m)) along the dimension,

    log p = (x - m) - l,   p = exp(log p)
    softmax      dx = p * (dy - sum(dy * p))
    log_softmax  dx = dy - p * sum(dy)

and cross_entropy is -sum_c u_c log p_c with u the targets made smooth, weighted, and zero in ignored rows, so that

    dx = g * (p * sum_c u_c - u),   du = -g * log p
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.op import Implementation
from kernels.softmax.op import CROSS_ENTROPY, LOG_SOFTMAX, SOFTMAX, CrossEntropyProblem, SoftmaxProblem

Array = np.ndarray[Any, Any]
DTYPES = ("float16", "float32", "float64")
# NaN and infinities are results here like any other.
_quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")


def statistics(x: Array, axis: int) -> tuple[Array, Array]:
    """Along an axis, kept with size 1: the maximum, and log(sum(exp(x - maximum)))."""
    if x.shape[axis] == 0:
        empty = tuple(1 if d == axis else n for d, n in enumerate(x.shape))
        return np.full(empty, -np.inf, x.dtype), np.full(empty, -np.inf, x.dtype)
    maximum = x.max(axis, keepdims=True)
    return maximum, np.log(np.exp(x - maximum).sum(axis, keepdims=True))


@_quiet
def softmax(p: SoftmaxProblem, x: Array) -> tuple[Array | None, ...]:
    """exp(x - m) / sum(exp(x - m))."""
    rows = x.reshape(p.extents)
    powers = np.exp(rows - rows.max(1, keepdims=True))
    return p.lay_out(((powers / powers.sum(1, keepdims=True)).reshape(x.shape),), p.results())


@_quiet
def softmax_backward(p: SoftmaxProblem, grad_output: Array, output: Array) -> tuple[Array | None, ...]:
    """p * (dy - sum(dy * p))."""
    dy, y = grad_output.reshape(p.extents), output.reshape(p.extents)
    return p.lay_out(((y * (dy - (dy * y).sum(1, keepdims=True))).reshape(output.shape),), p.gradients())


@_quiet
def log_softmax(p: SoftmaxProblem, x: Array) -> tuple[Array | None, ...]:
    """(x - m) - log(sum(exp(x - m)))."""
    rows = x.reshape(p.extents)
    maximum, log_sum = statistics(rows, 1)
    return p.lay_out(((rows - maximum - log_sum).reshape(x.shape),), p.results())


@_quiet
def log_softmax_backward(p: SoftmaxProblem, grad_output: Array, output: Array) -> tuple[Array | None, ...]:
    """dy - exp(log p) * sum(dy)."""
    dy, y = grad_output.reshape(p.extents), output.reshape(p.extents)
    return p.lay_out(((dy - np.exp(y) * dy.sum(1, keepdims=True)).reshape(output.shape),), p.gradients())


def _soft_targets(p: CrossEntropyProblem, target: Array, weight: Array | None, dtype: Any) -> tuple[Array, Array]:
    """(u (N, C, R), factor of each row in the mean's divisor (N, 1, R))."""
    n, classes, inner = p.extents
    factors = np.ones((1, classes, 1), dtype) if weight is None else weight.reshape(1, -1, 1)
    share = p.label_smoothing
    if not p.indexed:
        u = ((1 - share) * target.reshape(p.extents) + share / max(classes, 1)) * factors
        # Without a class there is nothing to average.
        return u, np.full((n, 1, inner), classes > 0, dtype)
    indices = target.reshape(n, 1, inner).astype(np.int64)
    kept = indices != p.ignore_index
    hot = (np.arange(classes).reshape(1, -1, 1) == indices) & kept
    u = ((1 - share) * hot + share / max(classes, 1) * kept) * factors
    return u.astype(dtype), (hot * factors).sum(1, keepdims=True, dtype=dtype)


@_quiet
def cross_entropy(
    p: CrossEntropyProblem, input: Array, target: Array, weight: Array | None
) -> tuple[Array | None, ...]:
    """loss, maximum, log_sum, divisor."""
    n, _, inner = p.extents
    rows = input.reshape(p.extents)
    maximum, log_sum = statistics(rows, 1)
    log_p = rows - maximum - log_sum
    u, counts = _soft_targets(p, target, weight, input.dtype)
    if p.indexed:
        # Without smoothing a row's loss reads no class but its own, though the others may be infinite.
        read = target.reshape(n, 1, inner) != p.ignore_index
        if p.label_smoothing == 0:
            read = read & _is_target(p, target)
        log_p = np.where(read, log_p, 0)
    losses = -(u * log_p).sum(1)
    divisor = counts.sum(dtype=input.dtype)
    if p.reduction == "none":
        loss = losses.reshape(p.rows_shape)
    else:
        loss = losses.sum() if p.reduction == "sum" else losses.sum() / divisor
    kept = (maximum.reshape(p.rows_shape), log_sum.reshape(p.rows_shape), divisor)
    found = (loss, *kept) if p.trains else (loss, None, None, None)
    pairs = zip(found, p.results(), strict=True)
    return tuple(None if form is None else np.asarray(a, form.dtype) for a, form in pairs)


def _is_target(p: CrossEntropyProblem, target: Array) -> Array:
    """Mask (N, C, R) of every row's class."""
    return np.arange(p.classes).reshape(1, -1, 1) == target.reshape(p.extents[0], 1, p.extents[2])


@_quiet
def cross_entropy_backward(
    p: CrossEntropyProblem,
    grad_loss: Array,
    input: Array,
    target: Array,
    weight: Array | None,
    maximum: Array,
    log_sum: Array,
    divisor: Array | None = None,
) -> tuple[Array | None, ...]:
    """Gradients of input and of target probabilities."""
    n, classes, inner = p.extents
    rows = input.reshape(p.extents)
    log_p = rows - maximum.reshape(n, 1, inner) - log_sum.reshape(n, 1, inner)
    u, _ = _soft_targets(p, target, weight, input.dtype)
    g = grad_loss if divisor is None else grad_loss / divisor
    g = g.reshape(n, 1, inner) if p.reduction == "none" else g
    dx = dt = None
    if p.needs_grad[0]:
        dx = g * (np.exp(log_p) * u.sum(1, keepdims=True) - u)
        if p.indexed:
            dx = np.where(target.reshape(n, 1, inner) == p.ignore_index, 0, dx)
        dx = np.ascontiguousarray(dx, input.dtype).reshape(input.shape)
    if p.needs_grad[1] and not p.indexed:
        factors = 1 if weight is None else weight.reshape(1, -1, 1)
        dt = -g * (1 - p.label_smoothing) * factors * log_p
        dt = np.ascontiguousarray(dt, input.dtype).reshape(input.shape)
    return dx, dt, None


Implementation(SOFTMAX, "reference", softmax, softmax_backward, dtypes=DTYPES)
Implementation(LOG_SOFTMAX, "reference", log_softmax, log_softmax_backward, dtypes=DTYPES)
Implementation(CROSS_ENTROPY, "reference", cross_entropy, cross_entropy_backward, dtypes=DTYPES)
