"""The poolings in Triton: which kernel runs, with which windows."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from kernels.arrays import ArraySpec
from kernels.pool2d import pool_triton, windows
from kernels.pool2d.gpu_launches import Adaptive, implement, windows_of
from kernels.pool2d.op import AvgPool2dProblem, LpPool2dProblem
from kernels.pool2d.pooling import Extremum, Pooling
from kernels.runtime.elementwise_triton import flat_tile
from kernels.runtime.triton_gpu import (
    DTYPES,
    computed,
    empty_like_form,
    empty_results,
    launch,
    target_of,
    zero_gradients,
)

Tensor = torch.Tensor


def _windows(p: Pooling) -> dict[str, Any]:
    """The constants of a kernel that say where the windows lie."""
    w = windows_of(p)
    kernel: tuple[int, ...] = w.kernel
    if isinstance(p, Adaptive):
        pairs = (windows.adaptive(p.x.shape[2 + d], p.output_size[d]) for d in (0, 1))
        kernel = tuple(int((end - start).max()) for start, end in pairs)
    named = {"KERNEL": kernel, "STRIDE": w.stride, "PADDING": w.padding, "DILATION": w.dilation}
    constants = {f"{name}_{side}": pair[d] for name, pair in named.items() for d, side in enumerate("HW")}
    return constants | {"ADAPTIVE": isinstance(p, Adaptive)}


def covers(p: Pooling) -> tuple[int, int]:
    """How many windows one after the other may cover a place, at most, vertically and horizontally."""
    found = []
    for d in (0, 1):
        size, outputs = p.x.shape[2 + d], p.output_plane[d]
        if isinstance(p, Adaptive):
            # The windows from floor(place * outputs / size) to ceil((place + 1) * outputs / size) - 1.
            most = max(-(-(h + 1) * outputs // size) - h * outputs // size for h in range(size))
        else:
            w = _windows(p)
            side = "HW"[d]
            reach = w[f"DILATION_{side}"] * (w[f"KERNEL_{side}"] - 1)
            most = reach // w[f"STRIDE_{side}"] + 1
        found.append(min(most, outputs))
    return found[0], found[1]


def _launch(kernel: Any, p: Pooling, form: ArraySpec, arrays: tuple[Any, ...], *numbers: Any, **constants: Any) -> None:
    """Run a kernel whose result is of `form`; `arrays` are its arguments, `numbers` what follows the sizes."""
    tensor = next(a for a in arrays if a is not None)
    of_thread = 4 if tensor.element_size() >= 4 else 8
    if tensor.element_size() == 8 and constants.get("POWER") is not None:
        of_thread = 2  # with more, sm_90's registers spill
    tile = flat_tile(form.size, target_of(tensor), of_thread)
    sizes = (form.size, p.x.shape[1], *p.x.shape[2:], *p.output_plane)
    last = p.x.channels_last
    wide = computed(getattr(torch, p.x.dtype))
    grid = (triton.cdiv(form.size, tile["BLOCK"]),)
    launch(kernel, grid, *arrays, *sizes, *numbers, LAST=last, COMPUTED=wide, **constants, **tile)


def _strides(array: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if array is None else array.stride()


# ----- maximum -----------------------------------------------------------------------------------------------------


def _maxima(p: Extremum, x: Tensor, magnitude: int = 0) -> tuple[Tensor | None, ...]:
    """output, indices."""
    if p.empty:
        return empty_results(p, x.device)
    form, of_indices = p.results()
    assert form is not None
    out = empty_like_form(form, x.device)
    indices = None if of_indices is None else empty_like_form(of_indices, x.device)
    _launch(
        pool_triton.max_of_windows, p, form, (x, out, indices), *x.stride(),
        **_windows(p), MAGNITUDE=magnitude, KEEPS=indices is not None,
    )  # fmt: skip
    return out, indices


def maxima(p: Extremum, x: Tensor) -> tuple[Tensor | None, ...]:
    """x (N, C, H, W) -> output, indices."""
    return _maxima(p, x)


def maxima_backward(
    p: Extremum, grad_output: Tensor, indices: Tensor, x: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Gradient of x; with x that of |x|."""
    if p.empty:
        return zero_gradients(p, grad_output.device)
    (form,) = p.gradients()
    assert form is not None
    out = empty_like_form(form, grad_output.device)
    vertical, horizontal = covers(p)
    strides = (*grad_output.stride(), *indices.stride(), *_strides(x))
    _launch(
        pool_triton.gradient_of_maxima, p, form, (grad_output, indices, x, out), *strides,
        COVERS_H=vertical, COVERS_W=horizontal, **_windows(p), SIGNED=x is not None,
    )  # fmt: skip
    return (out,)


# ----- average -----------------------------------------------------------------------------------------------------


def _averaging(p: Pooling) -> tuple[int, dict[str, Any]]:
    """(divisor where it is given, the constants of a kernel that averages)."""
    constants = _windows(p)
    del constants["DILATION_H"], constants["DILATION_W"]
    count, power, divisor = "padded", None, 1
    if isinstance(p, Adaptive):
        count = "adaptive"
    elif isinstance(p, LpPool2dProblem):
        power = p.norm_type
    else:
        assert isinstance(p, AvgPool2dProblem)
        if p.divisor_override is not None:
            count, divisor = "given", p.divisor_override
        elif not p.count_include_pad:
            count = "inside"
    return divisor, constants | {"COUNT": count, "POWER": power}


def means(p: Pooling, x: Tensor) -> tuple[Tensor | None, ...]:
    """x (N, C, H, W) -> output."""
    if p.empty:
        return empty_results(p, x.device)
    form = p.results()[0]
    assert form is not None
    out = empty_like_form(form, x.device)
    divisor, constants = _averaging(p)
    _launch(pool_triton.mean_of_windows, p, form, (x, out), *x.stride(), divisor, **constants)
    return (out,)


def means_backward(
    p: Pooling, grad_output: Tensor, x: Tensor | None = None, output: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Gradient of x."""
    if p.empty:
        return zero_gradients(p, grad_output.device)
    (form,) = p.gradients()
    assert form is not None
    out = empty_like_form(form, grad_output.device)
    divisor, constants = _averaging(p)
    vertical, horizontal = covers(p)
    strides = (*grad_output.stride(), *_strides(x), *_strides(output))
    _launch(
        pool_triton.gradient_of_means, p, form, (grad_output, x, output, out), *strides, divisor,
        COVERS_H=vertical, COVERS_W=horizontal, **constants,
    )  # fmt: skip
    return (out,)


# ----- power average -----------------------------------------------------------------------------------------------


def lp_pool2d(p: LpPool2dProblem, x: Tensor) -> tuple[Tensor | None, ...]:
    """x (N, C, H, W) -> output, indices of the extrema."""
    if p.is_extremum:
        return _maxima(p, x, int(math.copysign(1, p.norm_type)))
    return means(p, x)[0], None


def lp_pool2d_backward(
    p: LpPool2dProblem, grad_output: Tensor, x: Tensor, output: Tensor | None = None, indices: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Gradient of x."""
    if p.is_extremum:
        assert indices is not None
        return maxima_backward(p, grad_output, indices, x)
    return means_backward(p, grad_output, x, output)


implement(
    "triton", DTYPES, maxima=(maxima, maxima_backward), means=(means, means_backward),
    powers=(lp_pool2d, lp_pool2d_backward),
)  # fmt: skip
