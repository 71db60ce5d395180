"""The activations as NumPy equations: the oracle that every kernel is held to. The equations are in functions.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.activation import functions
from kernels.activation.op import OPS, ActivationProblem
from kernels.op import Implementation

Array = np.ndarray[Any, Any]


def forward(p: ActivationProblem, x: Array) -> tuple[Array | None, ...]:
    """act(x), in x's layout."""
    return p.lay_out((np.array(functions.apply(p.function, x)),), p.results())


def backward(
    p: ActivationProblem, grad_output: Array, x: Array | None = None, output: Array | None = None
) -> tuple[Array | None, ...]:
    """grad_output * act'(x), in x's layout; from the output where that is what is saved."""
    known = x if output is None else output
    assert known is not None
    return p.lay_out((np.asarray(functions.backward(p.function, grad_output, known)),), p.gradients())


for _op in OPS:
    Implementation(_op, "reference", forward, backward, dtypes=("float16", "float32", "float64"))
