"""The activations in CUDA C++: one pass over memory, in whatever order the elements lie there."""

from __future__ import annotations

from typing import Any

from kernels.activation.cuda_codes import code_of
from kernels.activation.gpu_speeds import measured
from kernels.activation.op import OPS, ActivationProblem
from kernels.arrays import ArraySpec
from kernels.op import Implementation
from kernels.runtime.cuda_tiles import FLAT_THREADS, flat_block
from kernels.runtime.cupy_gpu import (
    DTYPES,
    WIDEST,
    element_strides,
    empty_like_form,
    has_vectors,
    index_type,
    launch,
    target_of,
    types,
)
from kernels.runtime.strides import collapse

Array = Any

#: Dimensions that a kernel counts through.
MOST = 4


def launch_elements(kernel: str, dtype: str, items: int, vector: int, arrays: tuple[Any, ...], *numbers: int) -> None:
    """Run a kernel of activation.cu that has `items` threads of `vector` elements; numbers follow items."""
    present = [a for a in arrays if a is not None]
    constants = {
        **types(dtype),
        "INDEX": index_type(*present),
        "THREADS": FLAT_THREADS,
        "VECTOR": vector,
    }
    block = flat_block(items, target_of(present[0]))
    grid = (-(-items // block),)
    launch("activation/activation.cu", kernel, grid, (block,), *arrays, items, *numbers, constants=constants)


def _elementwise(kernel: str, name: str, form: ArraySpec, *inputs: Array) -> Array:
    """A fresh array in the layout of `form`, filled by a kernel from inputs of its shape."""
    out = empty_like_form(form)
    turned = [a.transpose(form.memory_order) for a in inputs]
    shape = tuple(turned[0].shape)
    sizes, strides = collapse(shape, [element_strides(a) for a in turned])
    if len(sizes) > MOST:
        turned = [a.copy() for a in turned]
        sizes, strides = collapse(shape, [element_strides(a) for a in turned])
    vector = WIDEST // form.itemsize
    flat = all(s in ((), (1,)) for s in strides) and form.size % vector == 0
    if not flat or not all(has_vectors(a.reshape(-1), 0, vector) for a in turned):
        vector = 1
    front = MOST - len(sizes)
    numbers = ((1,) * front + sizes)[1:]
    for s in strides:
        numbers += (0,) * front + s
    launch_elements(kernel, form.dtype, form.size // vector, vector, (*turned, out), *numbers, code_of(name))
    return out


def activated(name: str, form: ArraySpec, x: Array) -> Array:
    """act(x) in the layout of `form`."""
    return _elementwise("activate_elements", name, form, x)


def gradient(name: str, form: ArraySpec, grad: Array, known: Array) -> Array:
    """grad * act'(x) in the layout of `form`; known is act(x) for the activations in functions.FROM_OUTPUT, else x."""
    return _elementwise("activation_gradient_elements", name, form, grad, known)


def forward(p: ActivationProblem, x: Array) -> tuple[Array]:
    """act(x), in x's layout."""
    return (activated(p.function, p.layout, x),)


def backward(p: ActivationProblem, grad_output: Array, x: Array = None, output: Array = None) -> tuple[Array]:
    """The gradient of x, in x's layout."""
    return (gradient(p.function, p.layout, grad_output, x if output is None else output),)


def _describe(p: ActivationProblem) -> str:
    return f"{p.function} in one pass over x"


for _op in OPS:
    Implementation(_op, "cupy", forward, backward, dtypes=DTYPES, describe=_describe, measured=measured)
