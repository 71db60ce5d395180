"""The poolings in CUDA C++: which kernel of pool.cu runs, with which windows."""

from __future__ import annotations

import math
from typing import Any

from kernels.arrays import ArraySpec
from kernels.pool2d.gpu_launches import Adaptive, implement, windows_of
from kernels.pool2d.op import AvgPool2dProblem, LpPool2dProblem
from kernels.pool2d.pooling import Extremum, Pooling
from kernels.runtime.cuda_tiles import FLAT_THREADS, flat_block
from kernels.runtime.cupy_gpu import (
    DTYPES,
    WIDEST,
    element_strides,
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

#: Indices that a thread writes at a time, 128 bits of them: kernels with indices have no more elements a thread.
PAIR = 2


def elements_of_thread(p: Pooling, indices: bool, *arrays: Array) -> int:
    """How many channels a thread takes: 128 bits of them, or `PAIR` with indices, where all arrays have them so."""
    itemsize = p.x.itemsize
    wanted = min(WIDEST // itemsize, PAIR) if indices else WIDEST // itemsize
    fits = p.x.channels_last and all(has_vectors(a, 1, wanted) for a in arrays)
    return wanted if fits else 1


def _launch(
    kernel: str, p: Pooling, form: ArraySpec, arrays: tuple[Array | None, ...], read: tuple[Array, ...], *numbers: Any,
    indices: bool = False,
) -> None:  # fmt: skip
    """Run a kernel whose result is of `form`.

    arrays: its arguments. read: those of them whose strides it takes. numbers: what follows these.
    """
    present = [a for a in arrays if a is not None]
    vector = elements_of_thread(p, indices, *present)
    items = form.size // vector
    block = flat_block(items, target_of(present[0]))
    sizes = (items, p.x.shape[1], *p.x.shape[2:], *p.output_plane, int(p.x.channels_last))
    strides = [s for a in read for s in ((0, 0, 0, 0) if a is None else element_strides(a))]
    constants = {
        **types(p.x.dtype),
        "INDEX": index_type(*present),
        "THREADS": FLAT_THREADS,
        "VECTOR": vector,
    }
    launch(
        "pool2d/pool.cu", kernel, (-(-items // block),), (block,), *arrays, *sizes, *strides, *numbers,
        constants=constants,
    )  # fmt: skip


# ----- maximum -----------------------------------------------------------------------------------------------------


def _windows(p: Pooling) -> tuple[int, ...]:
    """Kernel size, stride, padding and dilation as the kernels take them."""
    w = windows_of(p)
    return *w.kernel, *w.stride, *w.padding, *w.dilation


def _maxima(p: Extremum, x: Array, magnitude: int = 0) -> tuple[Array | None, ...]:
    """output, indices."""
    if p.empty:
        return empty_results(p)
    form, of_indices = p.results()
    assert form is not None
    out = empty_like_form(form)
    indices = None if of_indices is None else empty_like_form(of_indices)
    numbers = (*_windows(p), int(isinstance(p, Adaptive)), magnitude)
    _launch("max_of_windows", p, form, (x, out, indices), (x,), *numbers, indices=indices is not None)
    return out, indices


def maxima(p: Extremum, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices."""
    return _maxima(p, x)


def maxima_backward(
    p: Extremum, grad_output: Array, indices: Array, x: Array | None = None
) -> tuple[Array | None, ...]:
    """Gradient of x; with x that of |x|."""
    if p.empty:
        return zero_gradients(p)
    (form,) = p.gradients()
    assert form is not None
    out = empty_like_form(form)
    numbers = (*_windows(p), int(isinstance(p, Adaptive)))
    arrays = (grad_output, indices, x, out)
    _launch("gradient_of_maxima", p, form, arrays, (grad_output, indices, x), *numbers, indices=True)
    return (out,)


# ----- average -----------------------------------------------------------------------------------------------------


def _averaging(p: Pooling) -> tuple[Any, ...]:
    """What the kernels of plain means take behind the strides: windows, what counts for the divisor, the divisor."""
    w = windows_of(p)
    padded, divisor = True, 0
    if isinstance(p, AvgPool2dProblem):
        padded, divisor = p.count_include_pad, p.divisor_override or 0
    return *w.kernel, *w.stride, *w.padding, int(isinstance(p, Adaptive)), int(padded), divisor


def means(p: Pooling, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output."""
    if p.empty:
        return empty_results(p)
    form = p.results()[0]
    assert form is not None
    out = empty_like_form(form)
    _launch("mean_of_windows", p, form, (x, out), (x,), *_averaging(p))
    return (out,)


def means_backward(p: Pooling, grad_output: Array) -> tuple[Array | None, ...]:
    """Gradient of x."""
    if p.empty:
        return zero_gradients(p)
    (form,) = p.gradients()
    assert form is not None
    out = empty_like_form(form)
    _launch("gradient_of_means", p, form, (grad_output, out), (grad_output,), *_averaging(p))
    return (out,)


# ----- power average -----------------------------------------------------------------------------------------------


def lp_pool2d(p: LpPool2dProblem, x: Array) -> tuple[Array | None, ...]:
    """x (N, C, H, W) -> output, indices of the extrema."""
    if p.is_extremum:
        return _maxima(p, x, int(math.copysign(1, p.norm_type)))
    if p.empty:
        return empty_results(p)
    form = p.results()[0]
    assert form is not None
    out = empty_like_form(form)
    _launch("power_mean_of_windows", p, form, (x, out), (x,), *p.kernel_size, *p.stride, p.norm_type)
    return out, None


def lp_pool2d_backward(
    p: LpPool2dProblem, grad_output: Array, x: Array, output: Array | None = None, indices: Array | None = None
) -> tuple[Array | None, ...]:
    """Gradient of x."""
    if p.is_extremum:
        assert indices is not None
        return maxima_backward(p, grad_output, indices, x)
    if p.empty:
        return zero_gradients(p)
    (form,) = p.gradients()
    assert form is not None
    out = empty_like_form(form)
    arrays = (grad_output, x, output, out)
    _launch("gradient_of_power_means", p, form, arrays, arrays[:3], *p.kernel_size, *p.stride, p.norm_type)
    return (out,)


implement(
    "cupy", DTYPES, maxima=(maxima, maxima_backward), means=(means, means_backward),
    powers=(lp_pool2d, lp_pool2d_backward),
)  # fmt: skip
