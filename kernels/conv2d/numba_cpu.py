"""conv2d and conv_transpose2d on the CPU: which kernel runs, and on what memory.

Seven kernels share the work: the gather kernel (`gather.py`, `weight_gradient.py`) for everything with channels to sum,
`winograd.py` for 3x3 filters of stride 1 over many channels, `pointwise.py` for 1x1 filters over few channels or few
pixels, `few_channels.py` where the outputs are too few to fill the gather kernel's vectors, or the products too few to
pay for its transposes, and for depthwise convolutions `depthwise_planes.py` on (N, C, H, W), `one_plane.py` there for
3x3 filters of stride 1, also for many of them on a single channel, and `depthwise_pixels.py` on channels-last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.activation.functions import FROM_OUTPUT
from kernels.activation.numba_cpu import grad_preactivation
from kernels.conv2d import depthwise_pixels, depthwise_planes, few_channels, geometry, one_plane, pointwise, winograd
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


@dataclass(frozen=True)
class _Facts:
    """What every run of a pass needs and is slow to derive.

    Attributes:
        kernel: which kernel runs it: "gather", "winograd", "pointwise", "few channels", "one plane", or the family.
        plan: the geometry.
        channels_last: the layout that the kernel works in.
        group_targets: output channels of a group.
        fan: source planes that an output plane sums, of a depthwise pass.
        share: output planes that read one source plane, where each reads one.
        taps: (kh, kw).
        weight_steps: distances in the weight between output channels, summed channels and groups.
    """

    kernel: str
    plan: geometry.Gather
    channels_last: bool
    group_targets: int
    fan: int
    share: int
    taps: tuple[int, int]
    weight_steps: tuple[int, int, int]


Shape = tuple[int, ...]


def _facts(p: Problem, source: Shape, target: Shape, transposed: bool) -> _Facts:
    """Facts of the pass between two images; kept on the problem, which lives as long as its plan."""
    known: dict[Any, _Facts] = p.__dict__.setdefault("_numba_facts", {})
    key = (source, target, transposed)
    found = known.get(key)
    if found is None:
        found = known[key] = _find_facts(p, source, target, transposed)
    return found


def _find_facts(p: Problem, source: Shape, target: Shape, transposed: bool) -> _Facts:
    kernel = family(p)
    last = p.channels_last and kernel != "depthwise planes"
    plan = geometry_of(p, transposed, source, target, last)
    outputs, inputs, height, width = p.weight.shape
    taps, group_outputs = height * width, outputs // p.groups
    fan, share = (group_outputs, 1) if transposed else (1, group_outputs)
    group_targets = inputs if transposed else group_outputs
    if kernel == "dense":
        group_inputs = source[1] // p.groups
        share = group_targets
        weight_in = taps if not transposed else inputs * taps
        if winograd.serves(plan, source[0], p.groups, group_targets, np.dtype(p.x.dtype), last):
            kernel = "winograd"
        elif pointwise.serves(plan, source[0], group_inputs, weight_in, p.x.itemsize, last):
            kernel = "pointwise"
        elif one_plane.serves(plan, group_inputs, last):
            kernel = "one plane"
        else:
            few = few_channels.serves(plan, group_inputs, group_targets, last)
            kernel = "few channels" if few else "gather"
    elif kernel == "depthwise planes" and one_plane.serves(plan, fan, False):
        kernel = "one plane"
    steps = (taps, inputs * taps) if transposed else (inputs * taps, taps)
    weight_steps = (*steps, group_outputs * inputs * taps)
    return _Facts(kernel, plan, last, group_targets, fan, share, (height, width), weight_steps)


def kernel_of(p: Problem, source: Shape, target: Shape, transposed: bool) -> str:
    """Which kernel runs the pass from `source` to `target`; see `_Facts`."""
    return _facts(p, source, target, transposed).kernel


def kernel_name(p: Problem, transposed: bool) -> str:
    """Which kernel runs the pass from the problem's image, or the one to it."""
    image, other = p.x.shape, p.output_shape
    if isinstance(p, ConvTranspose2dProblem):
        image, other = other, image
    source, target = (other, image) if transposed else (image, other)
    return kernel_of(p, source, target, transposed)


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
    f = _facts(p, x.shape, target, transposed)
    last = f.channels_last
    x, weight = dense(x, last), contiguous(weight)
    shift = zeros(target[1], x.dtype) if bias is None else contiguous(bias)
    y = fresh(target, x.dtype, last)
    before = fresh(target, x.dtype, last) if keep_sums else empty((0, 0, 0, 0), x.dtype)
    if f.kernel == "winograd" and winograd.run_winograd(
        f.plan, x.shape[0], target[1], weight, f.weight_steps, x, shift, y, before, activation
    ):
        return y, before
    # Also what Winograd's sums lost: where one is not finite, direct sums say which others are.
    sizes = (x.shape[0], p.groups, f.group_targets)
    if f.kernel in ("gather", "winograd"):
        run_pass(f.plan, *sizes, f.taps, weight, f.weight_steps, x, shift, y, before, activation, last)
    elif f.kernel == "few channels":
        few_channels.run_rows(f.plan, *sizes, weight, f.weight_steps, x, shift, y, before, activation)
    elif f.kernel == "pointwise":
        pointwise.run_columns(f.plan, *sizes, weight, f.weight_steps, x, shift, y, before, activation)
    elif f.kernel == "one plane":
        one_plane.run_planes(f.plan, f.share, weight, x, shift, y, before, activation)
    elif f.kernel == "depthwise pixels":
        depthwise_pixels.correlate_pixels(p, x, weight, shift, y, before, transposed, activation)
    else:
        depthwise_planes.correlate_planes(f.plan, x, weight, f.fan, f.share, shift, y, before, activation)
    if last != p.channels_last:
        y, before = dense(y, p.channels_last), dense(before, p.channels_last)
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
    y, before = image_pass(p, x, weight, bias, p.output_shape, False, p.activation, p.keeps_sums)
    return y, before if p.keeps_sums else None


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
