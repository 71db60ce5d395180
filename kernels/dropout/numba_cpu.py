"""dropout on the CPU: one pass, a few hundred factors at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.dropout.op import DROPOUT, DropoutProblem
from kernels.op import Implementation
from kernels.random import drop_threshold, keep_factors
from kernels.runtime.numba_cpu import contiguous, empty, jit, threaded, threads_for
from kernels.simd import lanes_of, load_first, pointer, select, store_first, zeros_like

Array = np.ndarray[Any, Any]

#: Elements whose factors are made at a time, and the least that a thread gets.
_PIECE = 512
_GRAIN = 16384


@jit
def _drop_pieces(first, last, threshold, seed, stream, kept, x, out):
    """out = x * kept where it is kept, else 0, for pieces [first, last); kept: one element."""
    p, q = pointer(x), pointer(out)
    lanes = lanes_of(p)
    for piece in range(first, last):
        start = piece * _PIECE
        count = min(_PIECE, x.size - start)
        # The factors stand where the results will: each is read before its result is written.
        keep_factors(start, count, threshold, seed[0], stream, kept[0], pointer(out, start))
        for i in range(start, start + count, lanes):
            left = start + count - i
            factor = load_first(q, i, left)
            # A dropped NaN is 0.
            store_first(q, i, select(factor == 0.0, zeros_like(p), load_first(p, i, left) * factor), left)


_drop = threaded(_drop_pieces)


def dropout(p: DropoutProblem, x: Array, seed: Array) -> tuple[Array | None, ...]:
    """output."""
    out = empty(p.x.shape, p.x.dtype)
    kept = np.full(1, p.kept, out.dtype)
    pieces, threads = -(-x.size // _PIECE), threads_for(x.size, _GRAIN)
    flat = contiguous(x).reshape(-1)
    _drop(pieces, threads, drop_threshold(p.p), contiguous(seed).reshape(1), p.stream, kept, flat, out.reshape(-1))
    return (out,)


def dropout_backward(p: DropoutProblem, grad_output: Array, seed: Array) -> tuple[Array | None, ...]:
    """Gradients of x and seed."""
    return (*dropout(p, grad_output, seed), None)


Implementation(DROPOUT, "numba", dropout, dropout_backward)
