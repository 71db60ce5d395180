"""The activations on the CPU: one pass over memory, in whatever order the elements lie there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels import arrays
from kernels.activation.op import OPS, ActivationProblem
from kernels.activation.vectors import ACTIVATION_CODES, activate, activation_gradient
from kernels.op import Implementation
from kernels.runtime.by_address import LIKE, Run
from kernels.runtime.numba_cpu import address, contiguous, empty, jit, threaded, threads_for
from kernels.simd import GROUP, lanes_of, load, load_first, load_group, pointer_at, store, store_first

Array = np.ndarray[Any, Any]

#: Elements a thread, below which another one does not pay: for relu, which waits for memory, and for the others.
GRAIN_RELU = 65536
GRAIN = 8192


@jit
def activate_range(first, last, code, like, x, out):
    """out[i] = act(x[i]) for first <= i < last; addresses of elements of the type of `like`, any activation code."""
    p, q = pointer_at(x, like), pointer_at(out, like)
    lanes = lanes_of(p)
    group = GROUP * lanes
    grouped = last - (last - first) % group
    # One loop for each code, so that the choice is made once.
    if code == 1:
        for i in range(first, grouped, group):
            store(q, i, activate(1, load_group(p, i)))
    elif code == 2:
        for i in range(first, grouped, group):
            store(q, i, activate(2, load_group(p, i)))
    elif code == 3:
        for i in range(first, grouped, group):
            store(q, i, activate(3, load_group(p, i)))
    elif code == 4:
        for i in range(first, grouped, group):
            store(q, i, activate(4, load_group(p, i)))
    elif code == 5:
        for i in range(first, grouped, group):
            store(q, i, activate(5, load_group(p, i)))
    elif GROUP > 1 and code == 6:
        for i in range(first, grouped, group):
            store(q, i, activate(6, load_group(p, i)))
    else:
        for i in range(first, grouped, group):
            store(q, i, activate(code, load_group(p, i)))
    whole = grouped
    if GROUP > 1:
        whole = last - (last - first) % lanes
        for i in range(grouped, whole, lanes):
            store(q, i, activate(code, load(p, i)))
    rest = last - whole
    if rest > 0:
        store_first(q, whole, activate(code, load_first(p, whole, rest)), rest)


@jit
def gradient_range(first, last, code, like, grad, known, out):
    """out[i] = grad[i] * act'(known[i]) for first <= i < last; addresses of elements of the type of `like`."""
    g, p, q = pointer_at(grad, like), pointer_at(known, like), pointer_at(out, like)
    lanes = lanes_of(p)
    group = GROUP * lanes
    grouped = last - (last - first) % group
    if code == 1:
        for i in range(first, grouped, group):
            store(q, i, activation_gradient(1, load_group(g, i), load_group(p, i)))
    elif code == 4:
        for i in range(first, grouped, group):
            store(q, i, activation_gradient(4, load_group(g, i), load_group(p, i)))
    elif code == 5:
        for i in range(first, grouped, group):
            store(q, i, activation_gradient(5, load_group(g, i), load_group(p, i)))
    elif GROUP > 1 and code == 2:
        for i in range(first, grouped, group):
            store(q, i, activation_gradient(2, load_group(g, i), load_group(p, i)))
    elif GROUP > 1 and code == 3:
        for i in range(first, grouped, group):
            store(q, i, activation_gradient(3, load_group(g, i), load_group(p, i)))
    elif GROUP > 1 and code == 6:
        for i in range(first, grouped, group):
            store(q, i, activation_gradient(6, load_group(g, i), load_group(p, i)))
    else:
        # These take so long that the branch does not count, unless several vectors go through memory to get there.
        for i in range(first, grouped, group):
            store(q, i, activation_gradient(code, load_group(g, i), load_group(p, i)))
    whole = grouped
    if GROUP > 1:
        whole = last - (last - first) % lanes
        for i in range(grouped, whole, lanes):
            store(q, i, activation_gradient(code, load(g, i), load(p, i)))
    rest = last - whole
    if rest > 0:
        found = activation_gradient(code, load_first(g, whole, rest), load_first(p, whole, rest))
        store_first(q, whole, found, rest)


# Parts begin at cache lines: 16 elements are a line of float32 and two of float64.
_activate = threaded(activate_range, align=16)
_gradient = threaded(gradient_range, align=16)


def _threads(size: int, code: int) -> int:
    return threads_for(size, GRAIN_RELU if code == 1 else GRAIN)


def _flat(array: Array, form: arrays.ArraySpec) -> Array:
    """The elements of an array in the memory order of `form`, 1-d; copied where they lie differently."""
    if form.strides is None:
        return contiguous(array).reshape(-1)
    return contiguous(array.transpose(form.memory_order)).reshape(-1)


def _run(p: ActivationProblem) -> Run:
    """act(x) of a dense x, in its memory order."""
    size, code, like = p.x.size, ACTIVATION_CODES[p.function], LIKE[p.x.dtype]
    return lambda x, out: _activate(size, _threads(size, code), code, like, x, out)


def _run_backward(p: ActivationProblem) -> Run:
    """grad_output, x or output -> gradient of x, all dense in x's memory order."""
    return gradient_run(p.function, p.x.size, p.x.dtype)


def gradient_run(name: str, size: int, dtype: str) -> Run:
    """``run(grad, known, out)``: out = grad * act'(x) for so many elements; see `grad_preactivation`."""
    code, like = ACTIVATION_CODES[name], LIKE[dtype]
    return lambda grad, known, out: _gradient(size, _threads(size, code), code, like, grad, known, out)


def _if_dense(prepare: Callable[[ActivationProblem], Run]) -> Callable[[ActivationProblem], Run | None]:
    return lambda p: prepare(p) if p.x.dense else None


def _in_order(form: arrays.ArraySpec, run: Run, *given: Array) -> Array:
    """The result of a run on arrays in the memory order of `form`."""
    flats = [_flat(array, form) for array in given]
    flat = empty(form.size, form.dtype)
    run(*map(address, (*flats, flat)))
    if form.strides is None:
        return flat.reshape(form.shape)
    return np.ndarray(form.shape, flat.dtype, flat, 0, tuple(step * flat.itemsize for step in form.strides))


def forward(p: ActivationProblem, x: Array) -> tuple[Array]:
    """act(x), in x's layout."""
    return (_in_order(p.layout, _run(p), x),)


def backward(
    p: ActivationProblem, grad_output: Array, x: Array | None = None, output: Array | None = None
) -> tuple[Array]:
    """The gradient of x, in x's layout."""
    known = x if output is None else output
    assert known is not None
    return (_in_order(p.layout, _run_backward(p), grad_output, known),)


def grad_preactivation(name: str, grad: Array, known: Array) -> Array:
    """grad * act'(x), for the backward passes of ops with an activation in their epilogue.

    Args:
        name: the activation, as in ACTIVATION_CODES.
        grad: gradient of the activation's output, any shape.
        known: that output for the activations in functions.FROM_OUTPUT, else the input x; grad's shape and dtype.

    Returns:
        a fresh array of grad's shape: C-contiguous, unless both come in the same transposed dense order, which is kept.
    """
    form = arrays.ArraySpec(grad.shape, grad.dtype.name)
    if not grad.flags.c_contiguous and grad.strides == known.strides:
        form = arrays.spec(grad).alike()
    return _in_order(form, gradient_run(name, grad.size, grad.dtype.name), grad, known)


def _describe(p: ActivationProblem) -> str:
    how = "x" if p.x.dense else "a contiguous copy of x"
    return f"{p.function} in one pass over {how}"


#: Operations below which torch's own function is faster, without gradients and with them.
_TORCH_BELOW = {
    "relu": (1 << 19, 1 << 19),
    "sigmoid": (18_000, 100_000),
    "silu": (15_000, 70_000),
    "tanh": (320, 5000),
    "gelu": (640, 5000),
    "gelu_tanh": (500, 5000),
}
#: Elements from which torch's gelu of float32 gains on ours, without gradients.
_LARGE_GELU = 60_000


def _torch_below(p: ActivationProblem) -> int:
    if p.function == "gelu" and p.x.dtype == "float32":
        # torch's costs five microseconds before it begins.
        return 1 << 20 if p.x.size > _LARGE_GELU and not p.trains else 0
    return _TORCH_BELOW[p.function][p.trains]


for _op in OPS:
    Implementation(
        _op, "numba", forward, backward, describe=_describe, torch_below=_torch_below,
        by_address=_if_dense(_run), backward_by_address=_if_dense(_run_backward),
    )  # fmt: skip
