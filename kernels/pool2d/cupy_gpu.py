"""The poolings in CUDA C++: which kernel of pool.cu runs, with which windows."""

from __future__ import annotations

import math
from typing import Any

from kernels.arrays import ArraySpec
from kernels.op import Implementation
from kernels.pool2d.adaptive import (
    ADAPTIVE_AVG_POOL2D,
    ADAPTIVE_MAX_POOL2D,
    AdaptiveAvgPool2dProblem,
    AdaptiveMaxPool2dProblem,
)
from kernels.pool2d.op import (
    AVG_POOL2D,
    INTEGERS,
    LP_POOL2D,
    MAX_POOL2D,
    AvgPool2dProblem,
    LpPool2dProblem,
    MaxPool2dProblem,
)
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
Adaptive = AdaptiveMaxPool2dProblem | AdaptiveAvgPool2dProblem

#: Indices that a thread writes at a time, 128 bits of them: kernels with indices have no more elements a thread.
PAIR = 2


def _windows(p: Pooling) -> dict[str, tuple[int, ...]]:
    """Kernel size, stride, padding and dilation, each (vertical, horizontal); of no meaning for adaptive windows."""
    if isinstance(p, Adaptive):
        return {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    assert isinstance(p, (MaxPool2dProblem, AvgPool2dProblem, LpPool2dProblem))
    dilation = p.dilation if isinstance(p, MaxPool2dProblem) else (1, 1)
    return {"kernel": p.kernel_size, "stride": p.stride, "padding": p.padding, "dilation": dilation}


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


def _maxima(p: Extremum, x: Array, magnitude: int = 0) -> tuple[Array | None, ...]:
    """output, indices."""
    if p.empty:
        return empty_results(p)
    form, of_indices = p.results()
    assert form is not None
    out = empty_like_form(form)
    indices = None if of_indices is None else empty_like_form(of_indices)
    w = _windows(p)
    numbers = (*w["kernel"], *w["stride"], *w["padding"], *w["dilation"], int(isinstance(p, Adaptive)), magnitude)
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
    w = _windows(p)
    numbers = (*w["kernel"], *w["stride"], *w["padding"], *w["dilation"], int(isinstance(p, Adaptive)))
    arrays = (grad_output, indices, x, out)
    _launch("gradient_of_maxima", p, form, arrays, (grad_output, indices, x), *numbers, indices=True)
    return (out,)


# ----- average -----------------------------------------------------------------------------------------------------


def _averaging(p: Pooling) -> tuple[Any, ...]:
    """What the kernels of plain means take behind the strides: windows, what counts for the divisor, the divisor."""
    w = _windows(p)
    padded, divisor = True, 0
    if isinstance(p, AvgPool2dProblem):
        padded, divisor = p.count_include_pad, p.divisor_override or 0
    return *w["kernel"], *w["stride"], *w["padding"], int(isinstance(p, Adaptive)), int(padded), divisor


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


def _reasons(p: Pooling) -> list[str]:
    if p.x.dtype in INTEGERS:
        return [f"x has dtype {p.x.dtype}; it takes {', '.join(DTYPES)}"]
    return []


def _describe(p: Pooling) -> str:
    order = "channels" if p.x.channels_last else "columns"
    return f"threads along the {order}; backward collects from the windows that cover a place"


_options: dict[str, Any] = {"reasons": _reasons, "dtypes": DTYPES, "describe": _describe}
Implementation(MAX_POOL2D, "cupy", maxima, maxima_backward, **_options)
Implementation(ADAPTIVE_MAX_POOL2D, "cupy", maxima, maxima_backward, **_options)
Implementation(AVG_POOL2D, "cupy", means, means_backward, **_options)
Implementation(ADAPTIVE_AVG_POOL2D, "cupy", means, means_backward, **_options)
Implementation(LP_POOL2D, "cupy", lp_pool2d, lp_pool2d_backward, **_options)
