"""conv2d and conv_transpose2d as equations in NumPy: the oracle that every kernel is held to.

Both are sums over the kernel's taps. With `x_rs` the padded image sampled at tap (r, s),

    conv2d            y[n, k, i, j]  = sum_{c, r, s} w[k, c, r, s] x_rs[n, c, i, j]
    its gradients     dx_rs[n, c]   += sum_k w[k, c, r, s] dy[n, k]
                      dw[k, c, r, s] = sum_{n, i, j} dy[n, k] x_rs[n, c]

and the transposed convolution is the map of dx_rs from dy to dx, taken as a forward pass.
(Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.activation.functions import FROM_OUTPUT, apply, derivative
from kernels.conv2d.op import CONV2D, CONV_TRANSPOSE2D, Conv2dProblem, ConvTranspose2dProblem
from kernels.op import Implementation

Array = np.ndarray[Any, Any]
DTYPES = ("float16", "float32", "float64")


def _pad(x: Array, padding: tuple[int, ...]) -> Array:
    top, bottom, left, right = padding
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))


def _tap(padded: Array, r: int, s: int, p: Any, size: tuple[int, int]) -> Array:
    """The view of the padded image that meets tap (r, s): (N, C, H_out, W_out)."""
    top, left = r * p.dilation[0], s * p.dilation[1]
    rows = slice(top, top + (size[0] - 1) * p.stride[0] + 1, p.stride[0])
    columns = slice(left, left + (size[1] - 1) * p.stride[1] + 1, p.stride[1])
    return padded[:, :, rows, columns]


def _grouped(x: Array, groups: int) -> Array:
    """(N, C, H, W) -> (N, G, C / G, H, W)."""
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w)


def correlate(x: Array, weight: Array, p: Any, size: tuple[int, int], in_order: bool = False) -> Array:
    """y = sum over taps of w[:, :, r, s] x_rs: (N, C_in, H, W), (C_out, C_in / G, kh, kw) -> (N, C_out, *size).

    in_order: every pixel's sum goes through the channels in the same order, so that equal inputs give equal bits; else
    it may be a matrix product, which is faster.
    """
    padded = _pad(x, p.padding)
    filters = weight.reshape(p.groups, -1, *weight.shape[1:])  # (G, C_out / G, C_in / G, kh, kw)
    y = np.zeros((x.shape[0], p.groups, filters.shape[1], *size), x.dtype)
    for r in range(weight.shape[2]):
        for s in range(weight.shape[3]):
            seen = _grouped(_tap(padded, r, s, p, size), p.groups)
            y += np.einsum("gkc,ngcij->ngkij", filters[..., r, s], seen, optimize=not in_order)
    return y.reshape(x.shape[0], weight.shape[0], *size)


def spread(dy: Array, weight: Array, p: Any, image: tuple[int, int]) -> Array:
    """The transpose of :func:`correlate` in x: (N, C_out, H_out, W_out) -> (N, C_in, *image)."""
    top, bottom, left, right = p.padding
    filters = weight.reshape(p.groups, -1, *weight.shape[1:])
    channels = p.groups * weight.shape[1]
    dx = np.zeros((dy.shape[0], channels, image[0] + top + bottom, image[1] + left + right), dy.dtype)
    g = _grouped(dy, p.groups)
    for r in range(weight.shape[2]):
        for s in range(weight.shape[3]):
            part = np.einsum("gkc,ngkij->ngcij", filters[..., r, s], g, optimize=True)
            view = _tap(dx, r, s, p, dy.shape[2:])
            view += part.reshape(view.shape)
    return np.ascontiguousarray(dx[:, :, top : top + image[0], left : left + image[1]])


def weight_gradient(x: Array, dy: Array, p: Any, shape: tuple[int, ...]) -> Array:
    """dw[k, c, r, s] = sum_{n, i, j} dy[n, k, i, j] x_rs[n, c, i, j], of the given weight shape.

    The sums of single rows i are added at the end: one long sum loses more than kernels do that are held to this.
    """
    padded = _pad(x, p.padding)
    dw = np.zeros((p.groups, shape[0] // p.groups, *shape[1:]), x.dtype)

    def rows(array: Array) -> Array:
        """(N, C, H, W) -> (G, H, C / G, N * W)."""
        by_row = _grouped(array, p.groups).transpose(1, 3, 2, 0, 4)
        return by_row.reshape(*by_row.shape[:3], -1)

    g = rows(dy)
    for r in range(shape[2]):
        for s in range(shape[3]):
            seen = rows(_tap(padded, r, s, p, dy.shape[2:]))
            dw[..., r, s] = (g @ seen.swapaxes(2, 3)).sum(1)
    return dw.reshape(shape)


def conv2d(p: Conv2dProblem, x: Array, weight: Array, bias: Array | None) -> tuple[Array | None, ...]:
    """x (N, C_in, H, W), weight (C_out, C_in / G, kh, kw), bias (C_out,) -> output, sums before the activation."""
    sums = correlate(x, weight, p, p.output_shape[2:])
    if bias is not None:
        sums = sums + bias[:, None, None]
    found = (apply(p.activation, sums), sums if p.results()[1] is not None else None)
    return p.lay_out(found, p.results())


def conv2d_backward(
    p: Conv2dProblem,
    grad_output: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    output: Array | None = None,
    preactivation: Array | None = None,
) -> tuple[Array | None, ...]:
    """grad_output (N, C_out, H_out, W_out) -> gradients of x, weight, bias."""
    dy = grad_output
    if p.activation is not None:
        known = output if p.activation in FROM_OUTPUT else preactivation
        assert known is not None
        dy = dy * derivative(p.activation, known)
    wants_x, wants_weight, wants_bias = p.needs_grad
    found = (
        spread(dy, weight, p, x.shape[2:]) if wants_x else None,
        weight_gradient(x, dy, p, weight.shape) if wants_weight else None,
        dy.sum((0, 2, 3)) if wants_bias else None,
    )
    return p.lay_out(found, p.gradients())


def conv_transpose2d(
    p: ConvTranspose2dProblem, x: Array, weight: Array, bias: Array | None
) -> tuple[Array | None, ...]:
    """x (N, C_in, H, W), weight (C_in, C_out / G, kh, kw), bias (C_out,) -> output."""
    y = spread(x, weight, p, p.output_shape[2:])
    return p.lay_out((y if bias is None else y + bias[:, None, None],), p.results())


def conv_transpose2d_backward(
    p: ConvTranspose2dProblem, grad_output: Array, x: Array, weight: Array
) -> tuple[Array | None, ...]:
    """grad_output (N, C_out, H_out, W_out) -> gradients of x, weight, bias."""
    wants_x, wants_weight, wants_bias = p.needs_grad
    found = (
        correlate(grad_output, weight, p, x.shape[2:]) if wants_x else None,
        weight_gradient(grad_output, x, p, weight.shape) if wants_weight else None,
        grad_output.sum((0, 2, 3)) if wants_bias else None,
    )
    return p.lay_out(found, p.gradients())


Implementation(CONV2D, "reference", conv2d, conv2d_backward, dtypes=DTYPES)
Implementation(CONV_TRANSPOSE2D, "reference", conv_transpose2d, conv_transpose2d_backward, dtypes=DTYPES)
