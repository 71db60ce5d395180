"""dropout on the CPU: one pass, a few hundred factors at a time."""

from __future__ import annotations

import numpy as np

from kernels.dropout.op import DROPOUT, DropoutProblem
from kernels.op import Implementation
from kernels.random import drop_threshold, keep_factors
from kernels.runtime.by_address import Run, backward_through, forward_through, if_plain
from kernels.runtime.numba_cpu import jit, threaded, threads_for
from kernels.simd import (
    advance,
    as_integers,
    lanes_of,
    load_first,
    peek,
    pointer_at,
    select,
    store_first,
    zeros_like,
)

#: Elements whose factors are made at a time, and the least that a thread gets.
_PIECE = 512
_GRAIN = 16384


@jit
def _drop_pieces(first, last, size, threshold, seed, stream, kept, x, out):
    """out = x * kept where it is kept, else 0, for pieces [first, last) of `size` elements.

    kept: one element; x, out: addresses of such elements; seed: the address of an int64.
    """
    p, q = pointer_at(x, kept), pointer_at(out, kept)
    number = peek(as_integers(pointer_at(seed, kept)), 0)
    lanes = lanes_of(p)
    for piece in range(first, last):
        start = piece * _PIECE
        count = min(_PIECE, size - start)
        # The factors stand where the results will: each is read before its result is written.
        keep_factors(start, count, threshold, number, stream, kept[0], advance(q, start))
        for i in range(start, start + count, lanes):
            left = start + count - i
            factor = load_first(q, i, left)
            # A dropped NaN is 0.
            store_first(q, i, select(factor == 0.0, zeros_like(p), load_first(p, i, left) * factor), left)


_drop = threaded(_drop_pieces)


def _prepare(p: DropoutProblem) -> Run:
    """x, seed -> output."""
    size, kept, threshold = p.x.size, np.full(1, p.kept, p.x.dtype), drop_threshold(p.p)
    pieces = -(-size // _PIECE)
    return lambda x, seed, out: _drop(pieces, threads_for(size, _GRAIN), size, threshold, seed, p.stream, kept, x, out)


def _prepare_backward(p: DropoutProblem) -> Run:
    """grad_output, seed -> gradient of x."""
    run = _prepare(p)
    return lambda grad_output, seed, grad_x, _: run(grad_output, seed, grad_x)


Implementation(
    DROPOUT, "numba", forward_through(DROPOUT, _prepare), backward_through(DROPOUT, _prepare_backward),
    by_address=if_plain(_prepare), backward_by_address=if_plain(_prepare_backward),
)  # fmt: skip
