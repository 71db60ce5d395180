"""conv2d_max_pool2d on the CPU: which kernel runs, and on what memory."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.activation.functions import FROM_OUTPUT
from kernels.conv2d import geometry
from kernels.conv2d import numba_cpu as convolutions
from kernels.conv2d.few_channels import FEW_OUTPUTS
from kernels.conv2d.image_pass import launch
from kernels.conv2d.launch import Job
from kernels.conv2d.numba_cpu import dense, fresh
from kernels.conv2d.weight_gradient import launch as weight_launch
from kernels.conv2d_max_pool2d import composed, gathered, routing, winograd
from kernels.conv2d_max_pool2d.bands import Windows, windows_of
from kernels.conv2d_max_pool2d.op import BYTE_TAPS, CONV2D_MAX_POOL2D, Conv2dMaxPool2dProblem
from kernels.conv2d_max_pool2d.windows_cpu import PoolRun
from kernels.op import Implementation
from kernels.runtime.by_address import Run
from kernels.runtime.numba_cpu import address, contiguous, empty, thread_count
from kernels.simd import VECTOR_BYTES

Array = np.ndarray[Any, Any]


def kernel_name(p: Conv2dMaxPool2dProblem) -> str:
    """Which kernel runs a problem: "gather", "winograd", or "" where conv2d and max_pool2d run one after the other."""
    c = p.convolution
    outputs = p.weight.shape[0] // p.groups
    if convolutions.is_depthwise(c) or p.pool_kernel_size[0] * p.pool_kernel_size[1] > BYTE_TAPS:
        return ""
    name = convolutions.kernel_of(c, p.x.shape, p.seen, transposed=False)
    if name not in ("few channels", "one plane", "pointwise"):
        return name
    # Few products, and vectors of channels that stay half empty: conv2d's vectors of pixels do better.
    return "gather" if outputs > FEW_OUTPUTS and outputs >= VECTOR_BYTES // p.x.itemsize else ""


def _plan(p: Conv2dMaxPool2dProblem) -> geometry.Gather:
    """The geometry of the part of the convolution that the windows see."""
    return geometry.forward_gather(
        p.x.shape[1],
        (p.x.shape[2], p.x.shape[3]),
        p.seen[1],
        (p.seen[2], p.seen[3]),
        p.convolution.kernel,
        (p.stride[0], p.stride[1]),
        (p.dilation[0], p.dilation[1]),
        (p.padding[0], p.padding[2]),
        p.groups,
        p.convolution.channels_last,
    )


class Way(NamedTuple):
    """How a problem runs: see `kernel_name`, `_plan` and `windows_of`."""

    kernel: str
    plan: geometry.Gather
    windows: Windows
    shape: tuple[int, int, int, int]
    channels_last: bool


def way_of(p: Conv2dMaxPool2dProblem) -> Way:
    """How `p` runs; kept in it, since working it out takes as long as a small call."""
    found: Way | None = vars(p).get("_way")
    if found is None:
        found = Way(kernel_name(p), _plan(p), windows_of(p), p.output_shape, p.convolution.channels_last)
        vars(p)["_way"] = found
    return found


def _forward_run(p: Conv2dMaxPool2dProblem) -> PoolRun:
    """x, weight, bias -> output, winners, sums of the winners, in the layout of the results; kept in p."""
    found: PoolRun | None = vars(p).get("_forward_run")
    if found is not None:
        return found
    name, plan, w, shape, last = way_of(p)
    dtype, trains = np.dtype(p.x.dtype), p.trains
    keeps = (trains, trains and p.keeps_sums)
    no_bias = np.zeros(shape[1], dtype)
    direct = gathered.launch(
        plan, w, shape[0], p.groups, p.convolution.kernel, shape[1], dtype, p.activation, last, *keeps
    )
    fast = None if name == "gather" else winograd.launch(plan, w, shape[0], shape[1], dtype, p.activation, *keeps)

    def run(x: int, weight: int, bias: int, y: int, winners: int, before: int) -> bool:
        places = (x, weight, bias or address(no_bias), y, winners, before)
        # Also what Winograd's sums lost: where one is not finite, direct sums say which others are.
        return (fast is not None and fast(*places)) or direct(*places)

    vars(p)["_forward_run"] = run
    return run


def by_address(p: Conv2dMaxPool2dProblem) -> Run | None:
    """The same where the arrays lie so."""
    return _forward_run(p) if way_of(p).kernel and convolutions.lies_plainly(p.convolution) else None


def conv2d_max_pool2d(
    p: Conv2dMaxPool2dProblem, x: Array, weight: Array, bias: Array | None
) -> tuple[Array | None, ...]:
    """output, winners, sums of the winners."""
    name, _, _, _, last = way_of(p)
    if not name:
        return composed.forward(p, x, weight, bias)
    made = tuple([None if form is None else fresh(form.shape, form.dtype, form.channels_last) for form in p.results()])
    alive = (dense(x, last), contiguous(weight), None if bias is None else contiguous(bias), *made)
    _forward_run(p)(*[0 if a is None else a.ctypes.data for a in alive])
    return made


def conv2d_max_pool2d_backward(
    p: Conv2dMaxPool2dProblem,
    grad_output: Array,
    x: Array,
    weight: Array,
    winners: Array,
    bias: Array | None = None,
    output: Array | None = None,
    preactivation: Array | None = None,
) -> tuple[Array | None, ...]:
    """Gradients of x, weight, bias."""
    known = None
    if p.activation is not None:
        known = output if p.activation in FROM_OUTPUT else preactivation
        assert known is not None
    if winners.dtype != np.uint8:
        return composed.backward(p, grad_output, x, weight, winners, known)  # taps that no byte can number
    c, last = p.convolution, p.convolution.channels_last
    wants_x, wants_weight, wants_bias = p.needs_grad
    # Channels-last the gradient is as the winners lie, and as the kernels' panels are: it stays so where that serves.
    turns = not last and _reads_planes(p)
    dtype = grad_output.dtype
    grad, db = fresh(p.seen, dtype, not turns), empty(p.seen[1], dtype)
    alive = (dense(grad_output, last), None if known is None else dense(known, last), dense(winners, True), grad, db)
    route = routing.launch(way_of(p).windows, *p.seen[:2], dtype, p.activation, last, not turns)
    route(*[0 if a is None else a.ctypes.data for a in alive])
    dx = dw = None
    if last or turns:
        dx = convolutions.image_pass(c, grad, weight, None, x.shape, True)[0] if wants_x else None
        dw = convolutions.weight_gradient_of(c, x, grad, weight.shape) if wants_weight else None
    else:
        dx = _image_gradient(p, grad, contiguous(weight)) if wants_x else None
        if wants_weight:
            dw, x = empty(weight.shape, grad.dtype), contiguous(x)
            run = weight_launch(way_of(p).plan, len(x), weight.shape, p.groups, grad.dtype, False, True)
            run(address(x), address(grad.transpose(0, 2, 3, 1)), address(dw))
    return dx, dw, db if wants_bias else None


def _reads_planes(p: Conv2dMaxPool2dProblem) -> bool:
    """Whether backward's passes into planes also read planes, and not pixels: all but the gather kernel's."""
    c = p.convolution
    if convolutions.is_depthwise(c):
        return True
    return p.needs_grad[0] and convolutions.kernel_of(c, p.seen, p.x.shape, transposed=True) != "gather"


@lru_cache(1024)
def _into_planes(plan: geometry.Gather, channels: int, height: int, width: int) -> geometry.Gather:
    """A plan between channels-last images, with its output in planes."""
    return replace(plan, output=geometry.layout(channels, height, width, False))


def _image_gradient(p: Conv2dMaxPool2dProblem, grad: Array, weight: Array) -> Array:
    """The gradient of x, in planes, from that of the convolution, channels-last, by the gather kernel."""
    dx = empty(p.x.shape, grad.dtype)
    _image_launch(p)(address(grad.transpose(0, 2, 3, 1)), address(weight), address(dx))
    return dx


def _image_launch(p: Conv2dMaxPool2dProblem) -> Run:
    """The same by address: ``run(grad, weight, dx)``."""
    c, dtype = p.convolution, np.dtype(p.x.dtype)
    n, channels, height, width = p.x.shape
    plan = _into_planes(convolutions.geometry_of(c, True, p.seen, p.x.shape, True), channels, height, width)
    outputs, inputs, taps = p.weight.shape[0], p.weight.shape[1], c.kernel[0] * c.kernel[1]
    steps = (taps, inputs * taps, outputs // p.groups * inputs * taps)
    run = launch(Job(plan, n, p.groups, inputs, c.kernel, steps, dtype, None, False, True))
    no_bias = np.zeros(channels, dtype)
    return lambda grad, weight, dx: run(grad, weight, address(no_bias), dx, dx)


def backward_by_address(p: Conv2dMaxPool2dProblem) -> Run | None:
    """grad_output, x, weight (bias), winners (output or sums) -> gradients of x, weight, bias, all in planes."""
    c, winners = p.convolution, p.results()[1]
    if not convolutions.lies_plainly(c) or c.channels_last or winners is None or winners.dtype != "uint8":
        return None
    dtype, turns, size = np.dtype(p.x.dtype), _reads_planes(p), math.prod(p.seen)
    wants_x, wants_weight, _ = p.needs_grad
    w, plan, has_known = way_of(p).windows, way_of(p).plan, p.activation is not None
    route = routing.launch(w, *p.seen[:2], dtype, p.activation, False, not turns)
    to_x = to_weight = None
    if wants_x:
        to_x = convolutions.image_launch(c, p.seen, p.x.shape, True) if turns else _image_launch(p)
    if wants_weight and turns:
        to_weight = convolutions.weight_launch(c, p.x.shape, p.seen)
    elif wants_weight:
        to_weight = weight_launch(plan, p.x.shape[0], p.weight.shape, p.groups, dtype, False, True)

    def run(dy: int, x: int, weight: int, *rest: int) -> bool:
        # bias, winners, known with an activation; winners alone without.
        *kept, dx, dw, db = rest
        grad = empty(size, dtype)  # Its name keeps it alive to the end.
        place = address(grad)
        route(dy, kept[2] if has_known else 0, kept[1] if has_known else kept[0], place, db)
        if to_weight is not None:
            to_weight(x, place, dw)
        return to_x is None or bool(to_x(place, weight, dx))

    return run


def describe(p: Conv2dMaxPool2dProblem) -> str:
    """Which kernel runs, for `explain`."""
    name = kernel_name(p)
    if not name:
        return f"conv2d ({convolutions.describe(p.convolution)}), then max_pool2d"
    return f"{name} kernel, pooled in cache, up to {thread_count()} threads"


Implementation(
    CONV2D_MAX_POOL2D, "numba", conv2d_max_pool2d, conv2d_max_pool2d_backward, describe=describe, by_address=by_address,
    backward_by_address=backward_by_address,
)  # fmt: skip
