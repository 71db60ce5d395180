"""Calls by address: a pass is prepared once for a problem, and then told nothing but where its arrays begin.

What a pass derives from a problem (sizes, tables, how the work is split) and a NumPy view of every tensor take longer
than many a kernel. So an implementation's ``by_address(problem)`` and ``backward_by_address(problem)`` make a `Run`,
and whoever calls it makes the results as they are declared. Arrays that lie otherwise go through copies to the same
run: `forward_through`, `backward_through`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import c_char
from math import prod
from typing import Any

import numpy as np

from kernels.arrays import ArraySpec
from kernels.op import Op, Problem, input_names, named
from kernels.runtime.numba_cpu import SMALLEST_ALIGNED, contiguous, empty, small, threads_for

Array = np.ndarray[Any, Any]
#: ``run(*places)``: addresses of what goes in, then of what comes out, in the order of the declaration; 0 for what is
#: absent or not wanted. The arrays lie as they are declared, aligned and without gaps, and are kept alive meanwhile.
#: False where a value is wrong or the run cannot do it: then the results hold nothing.
Run = Callable[..., Any]
Prepare = Callable[[Any], Run]
#: How a result is made: ``allocate(shape, dtype)``.
Maker = tuple[Callable[..., Array], tuple[int, ...], np.dtype[Any]]

#: An empty array of each element type: how a kernel is told the type of what lies at an address.
LIKE = {name: np.empty(0, name) for name in ("float32", "float64", "int64", "uint8")}


def _is_plain(form: ArraySpec) -> bool:
    """Whether an array has no gaps, and sizes that are known: those of torch's nested tensors are not."""
    return form.strides is None and all(type(size) is int for size in form.shape)


def if_plain(prepare: Prepare) -> Callable[[Any], Run | None]:
    """`prepare` for problems whose inputs are all C-contiguous; None for others."""

    def by_address(p: Problem) -> Run | None:
        specs = [getattr(p, name) for name in input_names(type(p))]
        return prepare(p) if all(s is None or _is_plain(s) for s in specs) else None

    return by_address


def by_threads(make: Callable[[int], Run], work: int, grain: int) -> Run:
    """The run that ``make(threads)`` prepares for the threads that such work takes when it is called; kept."""
    if work // grain <= 1:
        return make(1)
    known: dict[int, Run] = {}

    def run(*places: int) -> Any:
        threads = threads_for(work, grain)
        found = known.get(threads)
        if found is None:
            found = known[threads] = make(threads)
        return found(*places)

    return run


def maker(form: ArraySpec | None) -> Maker | None:
    """How arrays of a spec are made, in its layout."""
    if form is None:
        return None
    allocate = small if form.nbytes < SMALLEST_ALIGNED else empty
    if form.strides is None:
        return allocate, form.shape, np.dtype(form.dtype)
    order = form.memory_order
    back = sorted(range(form.ndim), key=order.__getitem__)

    def turned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return allocate(shape, dtype).transpose(back)

    return turned, tuple(form.shape[axis] for axis in order), np.dtype(form.dtype)


def array_from(place: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """The array of elements that lie at an address. It does not keep them alive."""
    room: Any = (c_char * (prod(shape) * dtype.itemsize)).from_address(place)
    return np.ndarray(shape, dtype, room)


def gradient_forms(p: Problem) -> tuple[ArraySpec | None, ...]:
    """Specs of the gradients of the inputs; None for one that is not wanted."""
    return tuple([form if wanted else None for form, wanted in zip(p.gradients(), p.needs_grad, strict=True)])


def mask_of(forms: Sequence[ArraySpec | None]) -> int:
    """The bits of an address that are 0 where the elements of any of these arrays are aligned."""
    return max((form.itemsize for form in forms if form is not None), default=1) - 1


def _run_on_arrays(
    p: Problem, way: str, prepare: Prepare, arrays: Sequence[Array | None], forms: tuple[ArraySpec | None, ...]
) -> tuple[Array | None, ...]:
    # Kept on the problem itself, which lives as long as the plan of a call.
    run: Run | None = p.__dict__.get(way)
    if run is None:
        run = p.__dict__[way] = prepare(p)
    alive = [None if array is None else contiguous(array) for array in arrays]
    made = tuple([None if form is None else empty(form.shape, form.dtype) for form in forms])
    if run(*[0 if a is None or not a.size else a.ctypes.data for a in (*alive, *made)]) is False:
        p.check_values(*arrays)
    return p.lay_out(made, forms)


def forward_through(op: Op, prepare: Prepare) -> Callable[..., tuple[Array | None, ...]]:
    """``Implementation.forward`` from what prepares a run of C-contiguous arrays for any problem."""

    def forward(p: Problem, *inputs: Array | None) -> tuple[Array | None, ...]:
        return _run_on_arrays(p, "_forward_run", prepare, inputs, p.results())

    return named(forward, op.inputs)


def backward_through(op: Op, prepare: Prepare) -> Callable[..., tuple[Array | None, ...]]:
    """``Implementation.backward`` from what prepares a run of C-contiguous arrays for any problem."""

    def backward(p: Problem, *gradients: Array | None, **saved: Array | None) -> tuple[Array | None, ...]:
        arrays = (*gradients, *[saved[name] for name in p.saved()])
        return _run_on_arrays(p, "_backward_run", prepare, arrays, gradient_forms(p))

    incoming = tuple(f"grad_{name}" for name in op.results[: op.differentiable_results])
    return named(backward, incoming, (*op.inputs, *op.results))
