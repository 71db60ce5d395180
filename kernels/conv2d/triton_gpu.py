"""conv2d and conv_transpose2d in Triton: which kernel runs, on which tile."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from kernels.activation.functions import FROM_OUTPUT
from kernels.activation.triton_gpu import gradient as activation_gradient
from kernels.arrays import ArraySpec
from kernels.conv2d import depthwise_triton, product_triton
from kernels.conv2d.gpu_launches import Problem, depthwise, reasons
from kernels.conv2d.gpu_speeds import FEW_CHANNELS, measured, multiplies_in_tf32
from kernels.conv2d.gpu_tiles import ConvTile, conv_tile, parts_of_pixels
from kernels.conv2d.op import CONV2D, CONV_TRANSPOSE2D, Conv2dProblem, ConvTranspose2dProblem
from kernels.op import Implementation
from kernels.runtime.elementwise_triton import flat_tile
from kernels.runtime.rows_triton import add_parts
from kernels.runtime.targets import Target
from kernels.runtime.triton_gpu import (
    DTYPES,
    computed,
    computed_dtype,
    empty,
    empty_like_form,
    empty_results,
    index_type,
    launch,
    on_tensor_cores,
    product_precision,
    target_of,
    zero_gradients,
)
from kernels.runtime.tuning import choose

Tensor = torch.Tensor

#: Elements of the tile of a sum over pixels.
SUM_TILE = 1024


def precision_of(dtype: torch.dtype, target: Target) -> str:
    """How float32 is multiplied: as torch is set for its own convolutions."""
    return product_precision(dtype, target, tf32=multiplies_in_tf32())


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides; 0 where there is a single place, whose stride may be any number, which would hide that vectors fit."""
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride()))


def _geometry(p: Problem) -> dict[str, Any]:
    """The constants of a kernel that say where the taps are."""
    named = {"KERNEL": p.kernel, "STRIDE": p.stride, "PADDING": p.padding[::2], "DILATION": p.dilation}
    return {f"{name}_{side}": pair[d] for name, pair in named.items() for d, side in enumerate("HW")}


def _packed(weight: Tensor, transposed: bool) -> Tensor:
    """The weight as a product reads it, copied unless it lies so: in memory (K, kh, kw, C).

    float32's tensor cores take both factors along the sum alone: for the transpose that is (C, kh, kw, K).
    """
    if transposed and weight.dtype == torch.float32:
        return weight.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    if weight.shape[2] * weight.shape[3] == 1 and weight.is_contiguous():
        return weight
    return weight.contiguous(memory_format=torch.channels_last)


def _has_vectors(channels: int, tensor: Tensor) -> bool:
    """Whether `channels` channels of an image lie side by side in vectors, as far as Triton can see: sixteens."""
    return tensor.stride(1) == 1 and channels % 16 == 0


def _tile(
    p: Problem, kernel: str, rows: int, columns: int, inner: int, tensor: Tensor, precision: str, *, vectors: bool,
    across: bool = False,
) -> ConvTile:  # fmt: skip
    target = target_of(tensor)
    cores = on_tensor_cores(tensor.dtype, precision) or (target.amd and tensor.element_size() == 4)
    itemsize = tensor.element_size()
    tile = conv_tile(rows, columns, inner, itemsize, target, tensor_cores=cores, vectors=vectors, across=across)
    return choose(kernel, p, target, tile)


def _constants(tile: ConvTile, dtype: torch.dtype, precision: str) -> dict[str, Any]:
    return {
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "INNER": tile.inner,
        "PRECISION": precision,
        "COMPUTED": computed(dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _convolve(
    p: Problem,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    form: ArraySpec,
    *,
    transposed: bool,
    activation: str | None = None,
    keeps: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(act(bias + weight * source), the sums before the activation) in the layout of `form`.

    transposed: weight (K, C, kh, kw) takes a source of K channels to C channels, else of C channels to K.
    """
    out = empty_like_form(form, source.device)
    sums = empty_like_form(form, source.device) if keeps else None
    if depthwise(p):
        _convolve_depthwise(p, source, weight, bias, out, sums, form, transposed, activation)
        return out, sums
    weight = _packed(weight, transposed)
    of_k, of_c, *of_taps = _strides(weight)
    outer, inner = weight.shape[0] // p.groups, weight.shape[1]
    out_channels, in_channels = (inner, outer) if transposed else (outer, inner)
    strides = (outer * of_k, of_c, of_k) if transposed else (outer * of_k, of_k, of_c)
    precision = precision_of(source.dtype, target_of(source))
    flat = in_channels < FEW_CHANNELS
    phases = p.stride if transposed else (1, 1)
    pixels = form.shape[0] * -(-form.shape[2] // phases[0]) * -(-form.shape[3] // phases[1])
    together = in_channels * (p.kernel[0] * p.kernel[1] if flat else 1)
    vectors = not flat and _has_vectors(in_channels, source)
    name = "convolve transposed" if transposed else "convolve"
    tile = _tile(p, name, pixels, out_channels, together, source, precision, vectors=vectors)
    grid = (
        triton.cdiv(pixels, tile.rows) * triton.cdiv(out_channels, tile.columns), phases[0] * phases[1], p.groups,
    )  # fmt: skip
    common = {f"COMMON_{side}": math.gcd(p.stride[d], p.dilation[d]) for d, side in enumerate("HW")}
    launch(
        product_triton.convolve, grid, source, weight, bias, out, sums, source.shape[0], in_channels, out_channels,
        *source.shape[2:], *form.shape[2:], *_strides(source), *strides, *of_taps, *_strides(out),
        **_geometry(p), **common, TRANSPOSED=transposed, FLAT=flat, HAS_BIAS=bias is not None,
        ACTIVATION=activation, KEEPS=keeps, **_constants(tile, source.dtype, precision),
        INDEX=index_type(source, weight, out), VECTORS=vectors,
    )  # fmt: skip
    return out, sums


def _convolve_depthwise(
    p: Problem, source: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, sums: Tensor | None,
    form: ArraySpec, transposed: bool, activation: str | None,
) -> None:  # fmt: skip
    tile = flat_tile(form.size, target_of(source), 4 if source.element_size() >= 4 else 8)
    if form.channels_last:
        # Neighbouring threads have neighbouring channels.
        weight = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    of_k, _, *of_taps = _strides(weight)
    numbers = (*_strides(source), of_k, *of_taps)
    sizes = (form.size, form.shape[1], *source.shape[2:], *form.shape[2:])
    constants = {
        **_geometry(p),
        "MULTIPLIER": weight.shape[0] // p.groups,
        "HAS_BIAS": bias is not None,
        "LAST": form.channels_last,
        "COMPUTED": computed(source.dtype),
        **tile,
    }
    grid = (triton.cdiv(form.size, tile["BLOCK"]),)
    if transposed:
        launch(depthwise_triton.spread_depthwise, grid, source, weight, bias, out, *sizes, *numbers, **constants)
    else:
        launch(
            depthwise_triton.convolve_depthwise, grid, source, weight, bias, out, sums, *sizes, *numbers,
            ACTIVATION=activation, KEEPS=sums is not None, **constants,
        )  # fmt: skip


def _weight_gradient(p: Problem, source: Tensor, grad: Tensor, form: ArraySpec) -> Tensor:
    """The gradient of conv2d's weight from its image and its output's gradient, in the layout of `form`."""
    if depthwise(p):
        return _sums(p, grad, source, form)
    out = empty_like_form(form, grad.device)
    outputs, channels = p.weight.shape[0] // p.groups, p.weight.shape[1]
    pixels = grad.shape[0] * grad.shape[2] * grad.shape[3]
    target = target_of(grad)
    precision = precision_of(grad.dtype, target)
    terms = channels * p.kernel[0] * p.kernel[1]
    vectors = _has_vectors(channels, source) and _has_vectors(outputs, grad)
    tile = _tile(p, "weight_gradient", outputs, terms, pixels, grad, precision, vectors=vectors, across=True)
    tiles = triton.cdiv(outputs, tile.rows) * triton.cdiv(terms, tile.columns)
    parts, part = parts_of_pixels(pixels, tiles * p.groups, target)
    of_parts = empty((parts, form.size), computed_dtype(grad.dtype), grad.device)
    p_out, p_in, _, p_tap = out.stride()
    launch(
        product_triton.weight_gradient_of_parts, (tiles, parts, p.groups), grad, source, of_parts, grad.shape[0],
        channels, outputs, *source.shape[2:], *grad.shape[2:], part, form.size, *_strides(grad), *_strides(source),
        p_out, p_in, p_tap, **_geometry(p), **_constants(tile, grad.dtype, precision),
        INDEX=index_type(grad, source, of_parts), VECTORS=vectors,
    )  # fmt: skip
    add_parts(of_parts, out)
    return out


def _sums(p: Problem, grad: Tensor, source: Tensor | None, form: ArraySpec) -> Tensor:
    """Sums over the pixels of grad: a bias's gradient, or with a source a depthwise weight's, of `form`."""
    out = empty_like_form(form, grad.device)
    channels = grad.shape[1]
    block = min(triton.next_power_of_2(channels), 64 if grad.stride(1) == 1 else 16)
    rows = SUM_TILE // block
    taps = form.size // channels
    programs = taps * triton.cdiv(channels, block)
    pixels = grad.shape[0] * grad.shape[2] * grad.shape[3]
    parts, part = parts_of_pixels(pixels, programs, target_of(grad))
    of_parts = empty((parts, form.size), computed_dtype(grad.dtype), grad.device)
    geometry, plane = _geometry(p), tuple(grad.shape[2:])
    if source is None:
        geometry |= {"KERNEL_H": 1, "KERNEL_W": 1}
        if grad.stride(2) == grad.shape[3] * grad.stride(3):
            plane = (1, grad.shape[2] * grad.shape[3])  # one long row, in which neighbours are easier to see
    size, strides = (source.shape[2:], _strides(source)) if source is not None else ((0, 0), (0, 0, 0, 0))
    launch(
        depthwise_triton.sums_of_pixels, (programs, parts), grad, source, of_parts, grad.shape[0], channels,
        *size, *plane, part, *_strides(grad), *strides, **geometry,
        MULTIPLIER=p.weight.shape[0] // p.groups, TIMES=source is not None, ROWS=rows, BLOCK=block,
        COMPUTED=computed(grad.dtype), INDEX=index_type(grad, source, of_parts),
        VECTORS=_has_vectors(channels, grad), num_warps=4,
    )  # fmt: skip
    add_parts(of_parts, out)
    return out


# ----- conv2d ------------------------------------------------------------------------------------------------------


def conv2d(p: Conv2dProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """x (N, C_in, H, W), weight (C_out, C_in / G, kh, kw), bias (C_out,) -> output, sums before the activation."""
    if p.empty:
        return empty_results(p, x.device)
    form, kept = p.results()
    assert form is not None
    bias = None if bias is None else bias.contiguous()
    activation = p.activation
    return _convolve(p, x, weight, bias, form, transposed=False, activation=activation, keeps=kept is not None)


def conv2d_backward(
    p: Conv2dProblem,
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    output: Tensor | None = None,
    preactivation: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """grad_output (N, C_out, H_out, W_out) -> gradients of x, weight, bias."""
    if p.empty:
        return zero_gradients(p, grad_output.device)
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
        _sums(p, grad, None, of_bias) if wants_bias and of_bias is not None else None,
    )


# ----- conv_transpose2d --------------------------------------------------------------------------------------------


def conv_transpose2d(
    p: ConvTranspose2dProblem, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """x (N, C_in, H, W), weight (C_in, C_out / G, kh, kw), bias (C_out,) -> output."""
    if p.empty:
        return empty_results(p, x.device)
    (form,) = p.results()
    assert form is not None
    bias = None if bias is None else bias.contiguous()
    return (_convolve(p, x, weight, bias, form, transposed=True)[0],)


def conv_transpose2d_backward(
    p: ConvTranspose2dProblem, grad_output: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, ...]:
    """grad_output (N, C_out, H_out, W_out) -> gradients of x, weight, bias: conv2d's passes the other way round."""
    if p.empty:
        return zero_gradients(p, grad_output.device)
    of_x, of_weight, of_bias = p.gradients()
    wants_x, wants_weight, wants_bias = p.needs_grad
    assert of_x is not None and of_weight is not None
    return (
        _convolve(p, grad_output, weight, None, of_x, transposed=False)[0] if wants_x else None,
        _weight_gradient(p, grad_output, x, of_weight) if wants_weight else None,
        _sums(p, grad_output, None, of_bias) if wants_bias and of_bias is not None else None,
    )


def _describe(p: Problem) -> str:
    if depthwise(p):
        return "depthwise, a sum over the taps for each output"
    few = " across taps" if p.weight.shape[1] < FEW_CHANNELS else ""
    return f"implicit matrix product{few}, {p.weight.shape[1] * p.kernel[0] * p.kernel[1]} terms"


Implementation(
    CONV2D, "triton", conv2d, conv2d_backward, reasons=reasons, dtypes=DTYPES, describe=_describe, measured=measured
)
Implementation(
    CONV_TRANSPOSE2D, "triton", conv_transpose2d, conv_transpose2d_backward,
    reasons=reasons, dtypes=DTYPES, describe=_describe, measured=measured,
)  # fmt: skip
