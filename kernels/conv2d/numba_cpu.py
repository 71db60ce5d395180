"""conv2d and conv_transpose2d on the CPU: which kernel runs, and on what memory.

Seven kernels share the work: the gather kernel (`gather.py`, `weight_gradient.py`) for everything with channels to sum,
`winograd.py` for 3x3 filters of stride 1 over many channels, `pointwise.py` for 1x1 filters over few channels or few
pixels, `few_channels.py` where the outputs are too few to fill the gather kernel's vectors, or the products too few to
pay for its transposes, and for depthwise convolutions `depthwise_planes.py` on (N, C, H, W), `one_plane.py` there for
3x3 filters of stride 1, also for many of them on a single channel, and `depthwise_pixels.py` on channels-last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kernels.activation.functions import FROM_OUTPUT
from kernels.activation.numba_cpu import grad_preactivation, gradient_run
from kernels.arrays import channels_last_strides
from kernels.conv2d import (
    depthwise_pixels,
    depthwise_planes,
    few_channels,
    geometry,
    one_plane,
    pointwise,
    weight_gradient,
    winograd,
)
from kernels.conv2d.image_pass import launch as launch_gather
from kernels.conv2d.launch import Job, Launch, Run
from kernels.conv2d.op import CONV2D, CONV_TRANSPOSE2D, Conv2dProblem, ConvTranspose2dProblem
from kernels.conv2d.weight_gradient import bias_gradient
from kernels.op import Implementation
from kernels.runtime.by_address import Run as AddressRun
from kernels.runtime.numba_cpu import address, contiguous, empty, thread_count
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
        job: the pass without activation; also in the layout that the kernel works in.
        no_bias: zeros, one for each output channel.
        no_bias_at: their address.
        launches: what runs it, by activation and whether the sums before it are kept.
    """

    kernel: str
    job: Job
    no_bias: Array
    no_bias_at: int
    launches: dict[tuple[str | None, bool], Launch]


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
    kernel, dtype = family(p), np.dtype(p.x.dtype)
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
        if winograd.serves(plan, source[0], p.groups, group_targets, dtype, last):
            kernel = "winograd"
        elif pointwise.serves(plan, source[0], group_inputs, group_targets, weight_in, dtype.itemsize, last):
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
    job = Job(
        plan, source[0], p.groups, group_targets, (height, width), weight_steps, dtype, None, False, last, fan, share
    )  # fmt: skip
    no_bias = np.zeros(job.outputs, dtype)
    return _Facts(kernel, job, no_bias, address(no_bias), {})


def _launch(p: Problem, f: _Facts, source: Shape, target: Shape, transposed: bool, *how: Any) -> Launch:
    """What runs a pass; how: activation, and whether the sums before it are kept. Kept from the first call on."""
    found = f.launches.get(how)
    if found is None:
        if f.kernel == "depthwise pixels":
            found = depthwise_pixels.launch(p, source, target, transposed, *how)
        else:
            job = replace(f.job, activation=how[0], keeps_sums=how[1])
            found = _LAUNCHES[f.kernel](job)
            if f.kernel == "winograd":
                found = _or_directly(found, job)
        f.launches[how] = found
    return found


_LAUNCHES: dict[str, Callable[[Job], Launch]] = {
    "gather": launch_gather,
    "winograd": winograd.launch,
    "pointwise": pointwise.launch,
    "few channels": few_channels.launch,
    "one plane": one_plane.launch,
    "depthwise planes": depthwise_planes.launch,
}


def _or_directly(transformed: Launch, job: Job) -> Launch:
    """Winograd's sums; what they lost too: where one is not finite, direct sums say which others are."""

    def make(threads: int) -> Run:
        run = transformed.make(threads)
        return lambda *places: run(*places) or launch_gather(job)(*places)

    return Launch(make, transformed.work, transformed.grain)


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


def _begin(image: Array, channels_last: bool) -> int:
    """Where a dense image begins."""
    return address(image.transpose(0, 2, 3, 1) if channels_last else image)


def image_pass(
    p: Problem,
    x: Array,
    weight: Array,
    bias: Array | None,
    target: tuple[int, ...],
    transposed: bool,
    activation: str | None = None,
    keep_sums: bool = False,
) -> tuple[Array, Array | None]:
    """conv2d's map from an image to `target`, or its transpose: the output, and the sums before the activation.

    Args:
        p: the problem: stride, padding, dilation, groups, layout.
        x: (N, C, H, W) of any strides.
        weight: (C_out, C_in / G, kh, kw) of conv2d.
        bias: one value for each channel of the target, or None.
        target: shape of the output.
        transposed: whether x is conv2d's output and the target its image.
        activation: applied to the sums.
        keep_sums: whether the sums are wanted; else they are None.
    """
    f = _facts(p, x.shape, target, transposed)
    last = f.job.channels_last
    run = _launch(p, f, x.shape, target, transposed, activation, keep_sums)
    x, weight = dense(x, last), contiguous(weight)
    shift = f.no_bias if bias is None else contiguous(bias)
    y = fresh(target, x.dtype, last)
    before = fresh(target, x.dtype, last) if keep_sums else None
    out = _begin(y, last)
    run(_begin(x, last), address(weight), address(shift), out, out if before is None else _begin(before, last))
    if last != p.channels_last:
        y, before = dense(y, p.channels_last), None if before is None else dense(before, p.channels_last)
    return y, before


def lies_plainly(p: Problem) -> bool:
    """Whether the image is dense in the layout of the results, and weight and bias are contiguous."""
    last = channels_last_strides(p.x.shape) if p.channels_last else None
    return p.x.strides == last and p.weight.strides is None and (p.bias is None or p.bias.strides is None)


def by_address(p: Problem) -> AddressRun | None:
    """x, weight, bias -> output, sums before the activation, all in one layout, in which a kernel works."""
    transposed = isinstance(p, ConvTranspose2dProblem)
    how = (None, False) if isinstance(p, ConvTranspose2dProblem) else (p.activation, p.keeps_sums)
    f = _facts(p, p.x.shape, p.output_shape, transposed)
    if not lies_plainly(p) or f.job.channels_last != p.channels_last:
        return None
    launch = _launch(p, f, p.x.shape, p.output_shape, transposed, *how)
    return lambda x, weight, bias, y, before=0: launch(x, weight, bias or f.no_bias_at, y, before or y)


def weight_launch(p: Problem, image: Shape, other: Shape) -> AddressRun:
    """What computes dw of conv2d from its image and the gradient of its output, dense in the problem's layout but for
    "depthwise planes", which takes contiguous ones; dw is contiguous."""
    name, dtype = family(p), np.dtype(p.x.dtype)
    if name == "depthwise pixels":
        return depthwise_pixels.filter_launch(p, image, other, dtype)
    last = p.channels_last and name == "dense"
    plan = geometry_of(p, False, image, other, last)
    if name == "depthwise planes":
        return depthwise_planes.filter_launch(plan, image[0], p.weight.shape, dtype)
    return weight_gradient.launch(plan, image[0], p.weight.shape, p.groups, dtype, last)


def weight_gradient_of(p: Problem, x: Array, dy: Array, shape: tuple[int, ...]) -> Array:
    """dw of conv2d from its image and the gradient of its output, in the problem's layout."""
    last = p.channels_last and family(p) != "depthwise planes"
    x, dy, dw = dense(x, last), dense(dy, last), empty(shape, x.dtype)
    weight_launch(p, x.shape, dy.shape)(_begin(x, last), _begin(dy, last), address(dw))
    return dense(dw, p.channels_last)


def image_launch(p: Problem, source: Shape, target: Shape, transposed: bool) -> AddressRun:
    """``run(x, weight, y)``: a pass between images without bias and activation, in the problem's layout, in which its
    kernel must work; False where it could not."""
    f = _facts(p, source, target, transposed)
    launch = _launch(p, f, source, target, transposed, None, False)
    return lambda x, weight, y: launch(x, weight, f.no_bias_at, y, y)


def backward_by_address(p: Problem) -> AddressRun | None:
    """grad_output, x, weight (and bias, and output or sums) -> gradients of x, weight and bias, all contiguous."""
    if not lies_plainly(p) or p.channels_last:
        return None
    transposed = isinstance(p, ConvTranspose2dProblem)
    activation = None if isinstance(p, ConvTranspose2dProblem) else p.activation
    x, y, dtype = p.x.shape, p.output_shape, np.dtype(p.x.dtype)
    wants_x, wants_weight, wants_bias = p.needs_grad
    to_x = image_launch(p, y, x, not transposed) if wants_x else None
    to_weight = weight_launch(p, *((y, x) if transposed else (x, y))) if wants_weight else None
    to_bias = weight_gradient.bias_launch(y, dtype, False) if wants_bias else None
    size = math.prod(y)
    to_sums = None if activation is None else gradient_run(activation, size, p.x.dtype)

    def run(dy: int, x: int, weight: int, *rest: int) -> bool:
        *kept, dx, dw, db = rest
        if to_sums is not None:
            sums = empty(size, dtype)  # Its name keeps it alive to the end.
            to_sums(dy, kept[1], address(sums))
            dy = address(sums)
        if to_weight is not None:
            to_weight(dy, x, dw) if transposed else to_weight(x, dy, dw)
        if to_bias is not None:
            to_bias(dy, db)
        return to_x is None or bool(to_x(dy, weight, dx))

    return run


def conv2d(p: Conv2dProblem, x: Array, weight: Array, bias: Array | None) -> tuple[Array | None, ...]:
    """output, and the sums before the activation where backward needs them."""
    y, before = image_pass(p, x, weight, bias, p.output_shape, False, p.activation, p.keeps_sums)
    return y, before


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


for _op, _forward, _backward in (
    (CONV2D, conv2d, conv2d_backward), (CONV_TRANSPOSE2D, conv_transpose2d, conv_transpose2d_backward)
):  # fmt: skip
    Implementation(
        _op, "numba", _forward, _backward, describe=describe, by_address=by_address,
        backward_by_address=backward_by_address,
    )  # fmt: skip
