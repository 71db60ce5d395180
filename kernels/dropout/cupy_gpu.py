"""dropout in CUDA C++: one pass, the mask made again in backward."""

from __future__ import annotations

from typing import Any

from kernels.dropout.op import DROPOUT, DropoutProblem
from kernels.op import Implementation
from kernels.random import drop_threshold
from kernels.runtime.cuda_tiles import flat_block
from kernels.runtime.cupy_gpu import (
    DTYPES,
    WIDEST,
    element_strides,
    empty,
    empty_results,
    has_vectors,
    launch,
    target_of,
    types,
    zero_gradients,
)
from kernels.runtime.strides import collapse

Array = Any

#: Dimensions that the kernel counts through.
MOST = 4


def _drop(p: DropoutProblem, x: Array, seed: Array) -> Array:
    out = empty(p.x.shape, p.x.dtype)
    sizes, (strides,) = collapse(tuple(x.shape), [element_strides(x)])
    if len(sizes) > MOST:
        x = x.copy(order="C")
        sizes, (strides,) = collapse(tuple(x.shape), [element_strides(x)])
    vector = max(4, WIDEST // p.x.itemsize)
    wide = strides in ((), (1,)) and has_vectors(x.reshape(-1)[: p.x.size // vector * vector], 0, vector)
    front = MOST - len(sizes)
    numbers = (*((1,) * front + sizes)[1:], *(0,) * front, *strides)
    items = -(-p.x.size // vector)
    block = flat_block(items, target_of(x))
    launch(
        "dropout/dropout.cu", "drop_elements", (-(-items // block),), (block,), x, seed, out, p.x.size, *numbers,
        drop_threshold(p.p), p.stream, p.kept, constants=types(p.x.dtype) | {"VECTOR": vector, "WIDE": int(wide)},
    )  # fmt: skip
    return out


def dropout(p: DropoutProblem, x: Array, seed: Array) -> tuple[Array | None, ...]:
    """output."""
    return empty_results(p) if p.empty else (_drop(p, x, seed),)


def dropout_backward(p: DropoutProblem, grad_output: Array, seed: Array) -> tuple[Array | None, ...]:
    """Gradients of x and seed."""
    return zero_gradients(p) if p.empty else (_drop(p, grad_output, seed), None)


def _describe(p: DropoutProblem) -> str:
    return f"{p.x.size} elements in one pass"


Implementation(DROPOUT, "cupy", dropout, dropout_backward, dtypes=DTYPES, describe=_describe)
