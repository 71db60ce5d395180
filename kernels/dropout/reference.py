"""dropout in NumPy: y = x / (1 - p) where the counter-based mask keeps x, else 0; backward is the same map."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.dropout.op import DROPOUT, DropoutProblem
from kernels.op import Implementation
from kernels.random import keep_mask

Array = np.ndarray[Any, Any]


def dropout(p: DropoutProblem, x: Array, seed: Array) -> tuple[Array | None, ...]:
    """output."""
    kept = keep_mask(p.x.shape, p.p, seed, p.stream)
    with np.errstate(invalid="ignore"):  # infinities with p = 1
        scaled = x * x.dtype.type(p.kept)
    return p.lay_out((np.where(kept, scaled, np.zeros_like(scaled)),), p.results())


def dropout_backward(p: DropoutProblem, grad_output: Array, seed: Array) -> tuple[Array | None, ...]:
    """Gradients of x and seed."""
    return (*dropout(p, grad_output, seed), None)


Implementation(DROPOUT, "reference", dropout, dropout_backward, dtypes=("float16", "float32", "float64"))
