"""linear_cross_entropy as equations in NumPy, with all logits in memory: the oracle that every kernel is held to.

With Z = x W^T + b and dZ the gradient that cross_entropy has for its logits,

    dx = dZ W          dW = dZ^T x          db = sum of the rows of dZ
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.linear_cross_entropy.op import LINEAR_CROSS_ENTROPY, LinearCrossEntropyProblem
from kernels.op import Implementation
from kernels.softmax import reference as softmax

Array = np.ndarray[Any, Any]
DTYPES = ("float16", "float32", "float64")


def _logits(p: LinearCrossEntropyProblem, x: Array, weight: Array, bias: Array | None) -> Array:
    """(N, C, d1 * d2 * ...)."""
    sums = x.reshape(p.rows, p.in_features) @ weight.reshape(-1, p.in_features).T
    sums = sums if bias is None else sums + bias.reshape(-1)
    return sums.reshape(p.rows, p.classes, p.inner)


def linear_cross_entropy(
    p: LinearCrossEntropyProblem, input: Array, linear_weight: Array, target: Array, linear_bias: Array | None,
    weight: Array | None,
) -> tuple[Array | None, ...]:  # fmt: skip
    """loss, maximum, log_sum, divisor."""
    problem = p.loss_of(p.rows, p.reduction)
    with np.errstate(invalid="ignore", over="ignore"):
        logits = _logits(p, input, linear_weight, linear_bias)
    found = softmax.cross_entropy(problem, logits, target.reshape(problem.target.shape), weight)
    pairs = zip(found, p.results(), strict=True)
    return tuple(None if form is None or a is None else np.reshape(a, form.shape) for a, form in pairs)


def linear_cross_entropy_backward(
    p: LinearCrossEntropyProblem,
    grad_loss: Array,
    input: Array,
    linear_weight: Array,
    target: Array,
    linear_bias: Array | None,
    weight: Array | None,
    maximum: Array,
    log_sum: Array,
    divisor: Array | None = None,
) -> tuple[Array | None, ...]:
    """Gradients of input, linear_weight, target, linear_bias, weight."""
    problem, wants, rows = p.loss_of(p.rows, p.reduction), p.needs_grad, (p.rows, p.inner)
    with np.errstate(invalid="ignore", over="ignore"):
        logits = _logits(p, input, linear_weight, linear_bias)
        of_rows = grad_loss.reshape(rows) if p.reduction == "none" else grad_loss
        dz, dt, _ = softmax.cross_entropy_backward(
            problem, of_rows, logits, target.reshape(problem.target.shape), weight, maximum.reshape(rows),
            log_sum.reshape(rows), divisor,
        )  # fmt: skip
        assert dz is not None
        dz = dz.reshape(p.rows, p.classes * p.inner)
        matrix = linear_weight.reshape(-1, p.in_features)
        dx = (dz @ matrix).reshape(input.shape) if wants[0] else None
        dw = (dz.T @ input.reshape(p.rows, p.in_features)).reshape(linear_weight.shape) if wants[1] else None
        db = None if linear_bias is None or not wants[3] else dz.sum(0, dtype=dz.dtype).reshape(linear_bias.shape)
        dt = None if dt is None or not wants[2] else dt.reshape(target.shape)
    return p.lay_out((dx, dw, dt, db, None), p.gradients())


Implementation(LINEAR_CROSS_ENTROPY, "reference", linear_cross_entropy, linear_cross_entropy_backward, dtypes=DTYPES)
