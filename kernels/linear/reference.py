"""linear as equations in NumPy: the oracle that every kernel is held to.

With x as a matrix of B rows (every leading dimension in one) and dy the gradient of the sums,

    y = act(x W^T + b)          dx = dy W          dW = dy^T x          db = sum of the rows of dy
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.activation.functions import FROM_OUTPUT, apply, derivative
from kernels.linear.op import LINEAR, LinearProblem
from kernels.op import Implementation

Array = np.ndarray[Any, Any]
DTYPES = ("float16", "float32", "float64")


def linear(p: LinearProblem, x: Array, weight: Array, bias: Array | None) -> tuple[Array | None, ...]:
    """x (*, in), weight (out, in) or (in,), bias (out,) or () -> output, sums before the activation."""
    sums = np.asarray(x @ p.plain_weight(weight).T)
    if bias is not None:
        sums = np.asarray(sums + bias)
    found = (np.asarray(apply(p.activation, sums)), sums if p.results()[1] is not None else None)
    return p.lay_out(found, p.results())


def linear_backward(
    p: LinearProblem,
    grad_output: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    output: Array | None = None,
    preactivation: Array | None = None,
) -> tuple[Array | None, ...]:
    """grad_output (*, out) or (*) -> gradients of x, weight, bias."""
    dy = grad_output
    if p.activation is not None:
        known = output if p.activation in FROM_OUTPUT else preactivation
        assert known is not None
        dy = np.asarray(dy * derivative(p.activation, known))
    rows = dy.reshape(p.batch, p.out_features)  # (B, out)
    wants_x, wants_weight, wants_bias = p.needs_grad
    dx = dw = db = None
    if wants_x:
        dx = (rows @ weight.reshape(p.out_features, p.in_features)).reshape(x.shape)
    if wants_weight:
        dw = (rows.T @ x.reshape(p.batch, p.in_features)).reshape(weight.shape)
    if wants_bias:
        assert p.bias is not None
        db = np.asarray(rows.sum() if p.bias.ndim == 0 else rows.sum(0), rows.dtype)
    return p.lay_out((dx, dw, db), p.gradients())


Implementation(LINEAR, "reference", linear, linear_backward, dtypes=DTYPES)
