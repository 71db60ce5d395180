"""conv2d and conv_transpose2d on the CPU: which kernel runs, and on what memory.

Seven kernels share the work: the gather kernel (`gather.py`, `weight_gradient.py`) for everything with channels to sum,
`winograd.py` for 3x3 filters of stride 1 over many channels, `pointwise.py` for 1x1 filters over few channels or few
pixels, `few_channels.py` where the outputs are too few to fill the gather kernel's vectors, or the products too few to
pay for its transposes, and for depthwise convolutions `depthwise_planes.py` on (N, C, H, W), `one_plane.py` there for
3x3 filters of stride 1, also for many of them on a single channel, and `depthwise_pixels.py` on channels-last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kernels.activation.functions import FROM_OUTPUT
from kernels.activation.numba_cpu import grad_preactivation
from kernels.conv2d import depthwise_pixels, depthwise_planes, few_channels, geometry, one_plane, pointwise, winograd
from kernels.conv2d.image_pass import launch as launch_gather
from kernels.conv2d.launch import Job, Launch, Run
from kernels.conv2d.op import CONV2D, CONV_TRANSPOSE2D, Conv2dProblem, ConvTranspose2dProblem
from kernels.conv2d.weight_gradient import bias_gradient, weight_gradient
from kernels.op import Implementation
from kernels.runtime.numba_cpu import address, contiguous, empty, place_of, thread_count
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
        launches: what runs it, by activation and whether the sums before it are kept.
    """

    kernel: str
    job: Job
    no_bias: Array
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
        elif pointwise.serves(plan, source[0], group_inputs, weight_in, dtype.itemsize, last):
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
    return _Facts(kernel, job, np.zeros(job.outputs, dtype), {})


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


def by_address(p: Problem) -> Callable[..., Array] | None:
    """The output of contiguous inputs."""
    transposed = isinstance(p, ConvTranspose2dProblem)
    activation = None if isinstance(p, ConvTranspose2dProblem) else p.activation
    keeps = isinstance(p, Conv2dProblem) and p.keeps_sums
    if keeps or p.channels_last or not all(s is None or s.strides is None for s in (p.x, p.weight, p.bias)):
        return None
    target = p.output_shape
    f = _facts(p, p.x.shape, target, transposed)
    launch = _launch(p, f, p.x.shape, target, transposed, activation, False)
    dtype, no_bias = f.job.dtype, f.no_bias

    def run(x: Array | int, weight: Array | int, bias: Array | int | None) -> Array:
        y = empty(target, dtype)
        out = address(y)
        launch(place_of(x), place_of(weight), place_of(no_bias if bias is None else bias), out, out)
        return y

    return run


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


Implementation(CONV2D, "numba", conv2d, conv2d_backward, describe=describe, by_address=by_address)
Implementation(
    CONV_TRANSPOSE2D, "numba", conv_transpose2d, conv_transpose2d_backward, describe=describe, by_address=by_address
)
