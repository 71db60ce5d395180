"""conv2d and conv_transpose2d on the CPU: which kernel runs, and on what memory.

Five kernels share the work: the gather kernel (`gather.py`, `weight_gradient.py`) for everything with channels to sum,
`winograd.py` for 3x3 filters of stride 1 over many channels, `few_channels.py` where the outputs are too few to fill
the gather kernel's vectors, or the products too few to pay for its transposes, and two for depthwise convolutions,
`depthwise_planes.py` for (N, C, H, W) and `depthwise_pixels.py` for channels-last.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from kernels.activation.functions import FROM_OUTPUT
from kernels.activation.numba_cpu import grad_preactivation
from kernels.conv2d import depthwise_pixels, depthwise_planes, few_channels, geometry, winograd
from kernels.conv2d.image_pass import run_pass
from kernels.conv2d.op import CONV2D, CONV_TRANSPOSE2D, Conv2dProblem, ConvTranspose2dProblem
from kernels.conv2d.weight_gradient import bias_gradient, weight_gradient
from kernels.op import Implementation
from kernels.runtime.numba_cpu import contiguous, empty, thread_count, zeros
from kernels.simd import TILE_ROWS, TILE_VECTORS, VECTOR_BYTES

Array = np.ndarray[Any, Any]
Problem = Conv2dProblem | ConvTranspose2dProblem


def is_depthwise(p: Problem) -> bool:
    """Whether every group has one channel on the image's side, so that there is nothing to sum over."""
    return p.weight.shape[1] == 1 and p.groups > 1


def family(p: Problem) -> str:
    """Which kernels run a problem: "dense", "depthwise planes" or "depthwise pixels"."""
    if not is_depthwise(p):
        return "dense"
    if p.channels_last and p.weight.shape[0] == p.groups:
        return "depthwise pixels"
    return "depthwise planes"


@lru_cache(4096)
def _dense_kernel(
    plan: geometry.Gather, images: int, groups: int, inputs: int, outputs: int, dtype: Any, channels_last: bool
) -> str:
    """Which kernel runs a pass of a dense convolution: "winograd", "few channels" or "gather".

    Args:
        plan: the geometry.
        images: N.
        groups: of both sides.
        inputs, outputs: channels of the source and of the target, all groups.
        dtype: of the arrays.
        channels_last: their layout.
    """
    if winograd.serves(plan, images, groups, outputs // groups, dtype, channels_last):
        return "winograd"
    few = few_channels.serves(plan, inputs // groups, outputs // groups, channels_last)
    return "few channels" if few else "gather"


def kernel_name(p: Problem, transposed: bool) -> str:
    """Which kernel runs the pass from the image, or the one to it: one of `_dense_kernel`, or the family."""
    if is_depthwise(p):
        return family(p)
    image, other = p.x.shape, p.output_shape
    if isinstance(p, ConvTranspose2dProblem):
        image, other = other, image
    source, target = (other, image) if transposed else (image, other)
    return kernel_of(p, source, target, transposed)


def kernel_of(p: Problem, source: tuple[int, ...], target: tuple[int, ...], transposed: bool) -> str:
    """Which kernel runs the pass of a dense convolution from `source` to `target`: one of `_dense_kernel`."""
    plan = geometry_of(p, transposed, source, target, p.channels_last)
    return _dense_kernel(plan, source[0], p.groups, source[1], target[1], np.dtype(p.x.dtype), p.channels_last)


def dense(x: Array, channels_last: bool) -> Array:
    """`x` dense in the wanted layout; itself where it is so already."""
    if channels_last:
        return contiguous(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return contiguous(x)


def fresh(shape: tuple[int, ...], dtype: Any, channels_last: bool) -> Array:
    """A new array in the wanted layout."""
    if channels_last:
        n, c, h, w = shape
        return empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)
    return empty(shape, dtype)


def geometry_of(
    p: Problem, transposed: bool, source: tuple[int, ...], target: tuple[int, ...], channels_last: bool
) -> geometry.Gather:
    """The geometry of conv2d's pass from `source` to `target`, or of its transpose."""
    make = geometry.transposed_gather if transposed else geometry.forward_gather
    return make(
        source[1],
        (source[2], source[3]),
        target[1],
        (target[2], target[3]),
        p.kernel,
        (p.stride[0], p.stride[1]),
        (p.dilation[0], p.dilation[1]),
        (p.padding[0], p.padding[2]),
        p.groups,
        channels_last,
    )


def image_pass(
    p: Problem,
    x: Array,
    weight: Array,
    bias: Array | None,
    target: tuple[int, ...],
    transposed: bool,
    activation: str | None = None,
    keep_sums: bool = False,
) -> tuple[Array, Array]:
    """conv2d's map from an image to `target`, or its transpose: the output, and the sums before the activation.

    Args:
        p: the problem: stride, padding, dilation, groups, layout.
        x: (N, C, H, W) of any strides.
        weight: (C_out, C_in / G, kh, kw) of conv2d.
        bias: one value for each channel of the target, or None.
        target: shape of the output.
        transposed: whether x is conv2d's output and the target its image.
        activation: applied to the sums.
        keep_sums: whether the sums are wanted; else their array has size 0.
    """
    name = family(p)
    last = p.channels_last
    planes = name == "depthwise planes"
    x, weight = dense(x, last and not planes), contiguous(weight)
    shift = zeros(target[1], x.dtype) if bias is None else contiguous(bias)
    y = fresh(target, x.dtype, last and not planes)
    before = fresh(target, x.dtype, last and not planes) if keep_sums else empty((0, 0, 0, 0), x.dtype)
    plan = geometry_of(p, transposed, x.shape, target, last and not planes)
    outputs, inputs, height, width = weight.shape
    taps = height * width
    if name == "depthwise pixels":
        depthwise_pixels.correlate_pixels(p, x, weight, shift, y, before, transposed, activation)
    elif planes:
        multiplier = outputs // p.groups
        fan, share = (multiplier, 1) if transposed else (1, multiplier)
        depthwise_planes.correlate_planes(plan, x, weight, fan, share, shift, y, before, activation)
        y, before = dense(y, last), dense(before, last)
    else:
        group_outputs = outputs // p.groups
        steps = (taps, inputs * taps) if transposed else (inputs * taps, taps)
        group_targets = inputs if transposed else group_outputs
        weight_steps = (*steps, group_outputs * inputs * taps)
        images = x.shape[0]
        kernel = _dense_kernel(plan, images, p.groups, x.shape[1], target[1], x.dtype, last)
        if kernel == "winograd" and winograd.run_winograd(
            plan, images, target[1], weight, weight_steps, x, shift, y, before, activation
        ):
            return y, before
        # Also what Winograd's sums lost: where one is not finite, direct sums say which others are.
        sizes = (images, p.groups, group_targets)
        if kernel == "few channels":
            few_channels.run_rows(plan, *sizes, weight, weight_steps, x, shift, y, before, activation)
        else:
            run_pass(plan, *sizes, p.kernel, weight, weight_steps, x, shift, y, before, activation, last)
    return y, before


def weight_gradient_of(p: Problem, x: Array, dy: Array, shape: tuple[int, ...]) -> Array:
    """dw of conv2d from its image and the gradient of its output, in the problem's layout."""
    name = family(p)
    last = p.channels_last
    if name == "depthwise pixels":
        dw = depthwise_pixels.filter_gradient(p, dense(x, last), dense(dy, last))
    elif name == "depthwise planes":
        plan = geometry_of(p, False, x.shape, dy.shape, False)
        dw = depthwise_planes.filter_gradient(plan, dense(x, False), dense(dy, False), shape)
    else:
        plan = geometry_of(p, False, x.shape, dy.shape, last)
        dw = weight_gradient(plan, dense(x, last), dense(dy, last), shape, p.groups, last)
    return dense(dw, last)


def conv2d(p: Conv2dProblem, x: Array, weight: Array, bias: Array | None) -> tuple[Array | None, ...]:
    """output, and the sums before the activation where backward needs them."""
    keep_sums = p.results()[1] is not None
    y, before = image_pass(p, x, weight, bias, p.output_shape, False, p.activation, keep_sums)
    return y, before if keep_sums else None


def conv2d_backward(
    p: Conv2dProblem,
    grad_output: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    output: Array | None = None,
    preactivation: Array | None = None,
) -> tuple[Array | None, ...]:
    """Gradients of x, weight, bias."""
    dy = dense(grad_output, p.channels_last)
    if p.activation is not None:
        known = output if p.activation in FROM_OUTPUT else preactivation
        assert known is not None
        dy = grad_preactivation(p.activation, dy, dense(known, p.channels_last))
    wants_x, wants_weight, wants_bias = p.needs_grad
    return (
        image_pass(p, dy, weight, None, x.shape, True)[0] if wants_x else None,
        weight_gradient_of(p, x, dy, weight.shape) if wants_weight else None,
        bias_gradient(dy, p.channels_last) if wants_bias else None,
    )


def conv_transpose2d(
    p: ConvTranspose2dProblem, x: Array, weight: Array, bias: Array | None
) -> tuple[Array | None, ...]:
    """output."""
    return (image_pass(p, x, weight, bias, p.output_shape, True)[0],)


def conv_transpose2d_backward(
    p: ConvTranspose2dProblem, grad_output: Array, x: Array, weight: Array
) -> tuple[Array | None, ...]:
    """Gradients of x, weight, bias."""
    dy = dense(grad_output, p.channels_last)
    wants_x, wants_weight, wants_bias = p.needs_grad
    return (
        image_pass(p, dy, weight, None, x.shape, False)[0] if wants_x else None,
        weight_gradient_of(p, dy, x, weight.shape) if wants_weight else None,
        bias_gradient(dy, p.channels_last) if wants_bias else None,
    )


def describe(p: Problem) -> str:
    """Which kernel runs, for `explain`."""
    lanes = VECTOR_BYTES // p.x.itemsize
    name = kernel_name(p, isinstance(p, ConvTranspose2dProblem))
    tile = f", tile {TILE_ROWS} pixels x {TILE_VECTORS * lanes} channels" if name == "gather" else ""
    return f"{name} kernel{tile}, up to {thread_count()} threads"


Implementation(CONV2D, "numba", conv2d, conv2d_backward, describe=describe)
Implementation(CONV_TRANSPOSE2D, "numba", conv_transpose2d, conv_transpose2d_backward, describe=describe)
