"""conv2d and conv_transpose2d in CUDA C++: which kernel runs, on which tile."""

from __future__ import annotations

import math
from typing import Any

from kernels.activation.cuda_codes import code_of
from kernels.activation.cupy_gpu import gradient as activation_gradient
from kernels.activation.functions import FROM_OUTPUT
from kernels.arrays import ArraySpec
from kernels.conv2d.cuda_tiles import LEAST_COLUMNS, product_tile, splits_of_steps, vector_elements
from kernels.conv2d.cupy_sums import Order, finish_parts, sum_of_parts, sums_over_pixels
from kernels.conv2d.cupy_weights import packed_weight
from kernels.conv2d.gpu_launches import Problem, depthwise, reasons
from kernels.conv2d.gpu_speeds import measured
from kernels.conv2d.gpu_tiles import parts_of_pixels
from kernels.conv2d.op import CONV2D, CONV_TRANSPOSE2D, Conv2dProblem, ConvTranspose2dProblem
from kernels.op import Implementation
from kernels.runtime.cuda_tiles import FLAT_THREADS, flat_block
from kernels.runtime.cupy_gpu import (
    DTYPES,
    computed_dtype,
    element_strides,
    empty,
    empty_like_form,
    empty_results,
    has_vectors,
    index_type,
    launch,
    target_of,
    types,
    zero_gradients,
)

Array = Any


def _geometry(p: Problem) -> tuple[int, ...]:
    """Kernel, stride, padding (top, left) and dilation, each vertical and horizontal, as kernels take them."""
    return *p.kernel, *p.stride, *p.padding[::2], *p.dilation


def _types(p: Problem, *arrays: Array | None) -> dict[str, int | str]:
    """The constants of every kernel."""
    return types(p.x.dtype) | {"INDEX": index_type(*arrays)}


# ----- products ----------------------------------------------------------------------------------------------------


def _group_vectors(channels: int, array: Array) -> bool:
    """Whether `channels` of a group lie side by side in vectors of 16 bytes."""
    count = vector_elements(array.dtype.itemsize)
    return channels % count == 0 and has_vectors(array, 1, count)


def _convolve(
    p: Problem,
    source: Array,
    weight: Array,
    bias: Array | None,
    form: ArraySpec,
    *,
    transposed: bool,
    activation: str | None = None,
    keeps: bool = False,
) -> tuple[Array, Array | None]:
    """(act(bias + weight * source), the sums before the activation) in the layout of `form`.

    transposed: weight (K, C, kh, kw) takes a source of K channels to C channels, else of C channels to K.
    """
    out = empty_like_form(form)
    sums = empty_like_form(form) if keeps else None
    if depthwise(p):
        _convolve_depthwise(p, source, weight, bias, out, sums, form, transposed, activation)
        return out, sums
    outer, channels = weight.shape[0] // p.groups, weight.shape[1]
    out_channels, in_channels = (channels, outer) if transposed else (outer, channels)
    phases = p.stride if transposed else (1, 1)
    pixels = form.shape[0] * -(-form.shape[2] // phases[0]) * -(-form.shape[3] // phases[1])
    itemsize = form.itemsize
    tile = product_tile(pixels * phases[0] * phases[1] * p.groups, out_channels, itemsize, target_of(source))
    packed = packed_weight(weight, p.groups, tile.columns, transposed)
    vectors = form.channels_last and _group_vectors(in_channels, source)
    wide = form.channels_last and _group_vectors(out_channels, out)
    common = [math.gcd(p.stride[d], p.dilation[d]) for d in (0, 1)]
    constants: dict[str, int | str] = {
        **_types(p, source, packed, out),
        **tile.constants(),
        "VECTOR": vector_elements(itemsize) if vectors else 1,
        "LAST": int(form.channels_last),
        "WRITE": vector_elements(itemsize) if wide else 1,
    }
    tiles = -(-pixels // tile.rows) * -(-out_channels // tile.columns)
    # Phases share the taps.
    steps = -(-in_channels * p.kernel[0] * p.kernel[1] // (phases[0] * phases[1] * tile.inner))
    blocks = tiles * phases[0] * phases[1] * p.groups
    splits = splits_of_steps(blocks, steps, p.groups, target_of(source))
    parts = None if splits == 1 else empty((splits, form.size), computed_dtype(form.dtype))
    if parts is not None:
        constants["INDEX"] = index_type(source, packed, parts)
    launch(
        "conv2d/product.cu", "convolve", (tiles, phases[0] * phases[1], p.groups * splits), (tile.threads,), source,
        packed, bias, out, sums, parts, form.size, splits, source.shape[0],
        in_channels, out_channels, *source.shape[2:], *form.shape[2:], packed.shape[3], *element_strides(source),
        *element_strides(out), *_geometry(p), *common, int(transposed), code_of(activation),
        constants=constants,
    )  # fmt: skip
    if parts is not None:
        finish_parts(parts, bias, out, sums, form, code_of(activation))
    return out, sums


def _weight_gradient(p: Problem, source: Array, grad: Array, form: ArraySpec) -> Array:
    """The gradient of conv2d's weight from its image and its output's gradient, in the layout of `form`."""
    if depthwise(p):
        return sums_over_pixels(grad, form, source, _geometry(p), p.weight.shape[0] // p.groups)
    outputs, channels = p.weight.shape[0] // p.groups, p.weight.shape[1]
    terms = channels * p.kernel[0] * p.kernel[1]
    pixels = grad.shape[0] * grad.shape[2] * grad.shape[3]
    target = target_of(grad)
    # As if for a GPU without multiprocessors: the parts keep them busy, and large tiles read the images less often.
    tile = product_tile(outputs * target.multiprocessors, terms, form.itemsize, target)
    tiles = -(-outputs // tile.rows) * -(-terms // tile.columns)
    parts, part = parts_of_pixels(pixels, tiles * p.groups, target)
    of_parts = empty((parts, form.size), computed_dtype(p.x.dtype))
    vectors = _group_vectors(channels, source) and _group_vectors(outputs, grad)
    constants: dict[str, int | str] = {
        **_types(p, source, grad, of_parts),
        **tile.constants(),
        "VECTOR": vector_elements(form.itemsize) if vectors else 1,
        "LAST": 1,
    }
    # The order in which the gradient lies, where no vector of channels says otherwise.
    taps_fastest = not vectors and not form.channels_last
    launch(
        "conv2d/weight_gradient.cu", "weight_gradient_of_parts", (tiles, parts, p.groups), (tile.threads,), grad,
        source, of_parts, grad.shape[0], channels, outputs, *source.shape[2:], *grad.shape[2:],
        int(taps_fastest), part, form.size, *element_strides(grad), *element_strides(source), *_geometry(p),
        constants=constants,
    )  # fmt: skip
    return sum_of_parts(of_parts, form, Order.TAPS if taps_fastest else Order.CHANNELS)


# ----- depthwise ---------------------------------------------------------------------------------------------------


def _convolve_depthwise(
    p: Problem, source: Array, weight: Array, bias: Array | None, out: Array, sums: Array | None,
    form: ArraySpec, transposed: bool, activation: str | None,
) -> None:  # fmt: skip
    vector = vector_elements(form.itemsize)
    multiplier = weight.shape[0] // p.groups
    if form.channels_last:
        # Neighbouring threads have neighbouring channels.
        packed = packed_weight(weight, 1, LEAST_COLUMNS, transposed=False)[0, :, :, : weight.shape[0]]
        weight = packed.reshape(*weight.shape[2:], *packed.shape[1:]).transpose(3, 2, 0, 1)
    if multiplier > 1 or not all((form.channels_last, has_vectors(source, 1, vector), has_vectors(weight, 0, vector))):
        vector = 1
    items = form.size // vector
    block = flat_block(items, target_of(source))
    of_k, _, *of_taps = element_strides(weight)
    sizes = (items, form.shape[1], *source.shape[2:], *form.shape[2:], int(form.channels_last))
    numbers = (*sizes, *element_strides(source), of_k, *of_taps, *_geometry(p), multiplier)
    constants = _types(p, source, weight, out) | {"THREADS": FLAT_THREADS, "VECTOR": vector}
    grid = (-(-items // block),)
    if transposed:
        arrays = (source, weight, bias, out)
        launch("conv2d/depthwise.cu", "spread_depthwise", grid, (block,), *arrays, *numbers, constants=constants)
    else:
        launch(
            "conv2d/depthwise.cu", "convolve_depthwise", grid, (block,), source, weight, bias, out, sums, *numbers,
            code_of(activation), constants=constants,
        )  # fmt: skip


# ----- conv2d ------------------------------------------------------------------------------------------------------


def _aligned(bias: Array | None) -> Array | None:
    """The bias with its elements side by side, and where whole vectors fill it, aligned to them."""
    if bias is None:
        return None
    vector = vector_elements(bias.dtype.itemsize)
    aligned = bias.shape[0] % vector != 0 or has_vectors(bias, 0, vector)
    return bias if element_strides(bias) in ((0,), (1,)) and aligned else bias.copy()


def conv2d(p: Conv2dProblem, x: Array, weight: Array, bias: Array | None) -> tuple[Array | None, ...]:
    """x (N, C_in, H, W), weight (C_out, C_in / G, kh, kw), bias (C_out,) -> output, sums before the activation."""
    if p.empty:
        return empty_results(p)
    form, kept = p.results()
    assert form is not None
    return _convolve(
        p, x, weight, _aligned(bias), form, transposed=False, activation=p.activation, keeps=kept is not None
    )


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
    if p.empty:
        return zero_gradients(p)
    grad = grad_output
    if p.activation is not None:
        known = output if p.activation in FROM_OUTPUT else preactivation
        form = p.results()[0]
        assert known is not None and form is not None
        grad = activation_gradient(p.activation, form, grad_output, known)
    of_x, of_weight, of_bias = p.gradients()
    wants_x, wants_weight, wants_bias = p.needs_grad
    assert of_x is not None and of_weight is not None
    return (
        _convolve(p, grad, weight, None, of_x, transposed=True)[0] if wants_x else None,
        _weight_gradient(p, x, grad, of_weight) if wants_weight else None,
        sums_over_pixels(grad, of_bias) if wants_bias and of_bias is not None else None,
    )


# ----- conv_transpose2d --------------------------------------------------------------------------------------------


def conv_transpose2d(
    p: ConvTranspose2dProblem, x: Array, weight: Array, bias: Array | None
) -> tuple[Array | None, ...]:
    """x (N, C_in, H, W), weight (C_in, C_out / G, kh, kw), bias (C_out,) -> output."""
    if p.empty:
        return empty_results(p)
    (form,) = p.results()
    assert form is not None
    return (_convolve(p, x, weight, _aligned(bias), form, transposed=True)[0],)


def conv_transpose2d_backward(
    p: ConvTranspose2dProblem, grad_output: Array, x: Array, weight: Array
) -> tuple[Array | None, ...]:
    """grad_output (N, C_out, H_out, W_out) -> gradients of x, weight, bias: conv2d's passes the other way round."""
    if p.empty:
        return zero_gradients(p)
    of_x, of_weight, of_bias = p.gradients()
    wants_x, wants_weight, wants_bias = p.needs_grad
    assert of_x is not None and of_weight is not None
    return (
        _convolve(p, grad_output, weight, None, of_x, transposed=False)[0] if wants_x else None,
        _weight_gradient(p, grad_output, x, of_weight) if wants_weight else None,
        sums_over_pixels(grad_output, of_bias) if wants_bias and of_bias is not None else None,
    )


def describe(p: Problem) -> str:
    """Which kernel runs, in a few words."""
    if depthwise(p):
        return "depthwise, a sum over the taps for each output"
    by = "tensor cores" if p.x.itemsize == 2 else "registers"
    return f"implicit matrix product in {by}, {p.weight.shape[1] * p.kernel[0] * p.kernel[1]} terms"


Implementation(
    CONV2D, "cupy", conv2d, conv2d_backward, reasons=reasons, dtypes=DTYPES, describe=describe, measured=measured
)
Implementation(
    CONV_TRANSPOSE2D, "cupy", conv_transpose2d, conv_transpose2d_backward,
    reasons=reasons, dtypes=DTYPES, describe=describe, measured=measured,
)  # fmt: skip
