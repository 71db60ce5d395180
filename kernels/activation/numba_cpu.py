"""The activations on the CPU: one pass over memory, in whatever order the elements lie there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels import arrays
from kernels.activation.op import OPS, ActivationProblem
from kernels.activation.vectors import ACTIVATION_CODES, activate, activation_gradient
from kernels.op import Implementation
from kernels.runtime.numba_cpu import contiguous, empty, jit, threaded, threads_for
from kernels.simd import array_at, lanes_of, load, load_first, pointer, store, store_first

Array = np.ndarray[Any, Any]

#: Elements a thread, below which another one does not pay: for relu, which waits for memory, and for the others.
GRAIN_RELU = 65536
GRAIN = 8192


@jit
def activate_range(first, last, code, x, out):
    """out[i] = act(x[i]) for first <= i < last; 1-d contiguous arrays of one dtype, any activation code."""
    p, q = pointer(x), pointer(out)
    lanes = lanes_of(p)
    whole = last - (last - first) % lanes
    # One loop for each code, so that the choice is made once.
    if code == 1:
        for i in range(first, whole, lanes):
            store(q, i, activate(1, load(p, i)))
    elif code == 2:
        for i in range(first, whole, lanes):
            store(q, i, activate(2, load(p, i)))
    elif code == 3:
        for i in range(first, whole, lanes):
            store(q, i, activate(3, load(p, i)))
    elif code == 4:
        for i in range(first, whole, lanes):
            store(q, i, activate(4, load(p, i)))
    elif code == 5:
        for i in range(first, whole, lanes):
            store(q, i, activate(5, load(p, i)))
    else:
        for i in range(first, whole, lanes):
            store(q, i, activate(code, load(p, i)))
    rest = last - whole
    if rest > 0:
        store_first(q, whole, activate(code, load_first(p, whole, rest)), rest)


@jit
def gradient_range(first, last, code, grad, known, out):
    """out[i] = grad[i] * act'(known[i]) for first <= i < last; 1-d contiguous arrays of one dtype."""
    g, p, q = pointer(grad), pointer(known), pointer(out)
    lanes = lanes_of(p)
    whole = last - (last - first) % lanes
    if code == 1:
        for i in range(first, whole, lanes):
            store(q, i, activation_gradient(1, load(g, i), load(p, i)))
    elif code == 4:
        for i in range(first, whole, lanes):
            store(q, i, activation_gradient(4, load(g, i), load(p, i)))
    elif code == 5:
        for i in range(first, whole, lanes):
            store(q, i, activation_gradient(5, load(g, i), load(p, i)))
    else:
        # These take so long that the branch does not count.
        for i in range(first, whole, lanes):
            store(q, i, activation_gradient(code, load(g, i), load(p, i)))
    rest = last - whole
    if rest > 0:
        found = activation_gradient(code, load_first(g, whole, rest), load_first(p, whole, rest))
        store_first(q, whole, found, rest)


@jit
def activate_range_at(first, last, code, place, out):
    """activate_range with x at a place (kernels.simd.places)."""
    activate_range(first, last, code, array_at(out, place, out.size), out)


# Parts begin at cache lines: 16 elements are a line of float32 and two of float64.
_activate = threaded(activate_range, align=16)
_activate_at = threaded(activate_range_at, align=16)
_gradient = threaded(gradient_range, align=16)


def _threads(size: int, code: int) -> int:
    return threads_for(size, GRAIN_RELU if code == 1 else GRAIN)


def _flat(array: Array, form: arrays.ArraySpec) -> Array:
    """The elements of an array in the memory order of `form`, 1-d; copied where they lie differently."""
    if form.strides is None:
        return contiguous(array).reshape(-1)
    return contiguous(array.transpose(form.memory_order)).reshape(-1)


def _fresh(form: arrays.ArraySpec, like: Array) -> tuple[Array, Array]:
    """A new array in the layout of `form`, and the same memory 1-d; size and dtype are those of `like`."""
    flat = empty(like.size, like.dtype)
    if form.strides is None:
        return flat.reshape(form.shape), flat
    strides = tuple(step * flat.itemsize for step in form.strides)
    return np.ndarray(form.shape, flat.dtype, flat, 0, strides), flat


def forward(p: ActivationProblem, x: Array) -> tuple[Array]:
    """act(x), in x's layout."""
    form = p.layout
    out, flat = _fresh(form, x)
    code = ACTIVATION_CODES[p.function]
    _activate(flat.size, _threads(flat.size, code), code, _flat(x, form), flat)
    return (out,)


def by_address(p: ActivationProblem) -> Callable[..., Array] | None:
    """forward, for a contiguous x."""
    if p.x.strides is not None:
        return None
    code, size, shape, dtype = ACTIVATION_CODES[p.function], p.x.size, p.x.shape, np.dtype(p.x.dtype)

    def run(x: Array | int) -> Array:
        out = empty(size, dtype)
        _activate_at(size, _threads(size, code), code, x, out)
        return out.reshape(shape)

    return run


def backward(
    p: ActivationProblem, grad_output: Array, x: Array | None = None, output: Array | None = None
) -> tuple[Array]:
    """The gradient of x, in x's layout."""
    known = x if output is None else output
    assert known is not None
    return (_gradient_in(p.layout, p.function, grad_output, known),)


def _gradient_in(form: arrays.ArraySpec, name: str, grad: Array, known: Array) -> Array:
    out, flat = _fresh(form, known)
    code = ACTIVATION_CODES[name]
    _gradient(flat.size, _threads(flat.size, code), code, _flat(grad, form), _flat(known, form), flat)
    return out


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
    return _gradient_in(form, name, grad, known)


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
    Implementation(_op, "numba", forward, backward, describe=_describe, torch_below=_torch_below, by_address=by_address)
