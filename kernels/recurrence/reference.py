"""The recurrent layers in NumPy, from the equations in equations.py: the oracle that every kernel is held to."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.activation.functions import sigmoid
from kernels.op import input_names
from kernels.recurrence import equations
from kernels.recurrence.op import GRU_LAYER, LSTM_LAYER, RNN_LAYER, implement
from kernels.recurrence.problem import Layer

Array = np.ndarray[Any, Any]


def _zeros(shape: tuple[int, ...], like: Array) -> Array:
    return np.zeros(shape, like.dtype)


def _join(arrays: list[Array]) -> Array:
    return np.concatenate(arrays, axis=-1)


NUMPY = equations.Math(sigmoid, np.tanh, np.where, _join, np.stack, _zeros)


def forward(p: Layer, *inputs: Array | None) -> tuple[Array | None, ...]:
    """The op's inputs -> its results."""
    named = p.named(inputs)
    return p.lay_out(equations.results(NUMPY, p, named, equations.run(NUMPY, p, named)), p.results())


def backward(p: Layer, *incoming: Array | None, **saved: Array | None) -> tuple[Array | None, ...]:
    """Gradients of output, h_n (and c_n), each possibly None -> gradients of the inputs."""
    named = {name: saved[name] for name in input_names(type(p))}
    found = equations.gradients(NUMPY, p, named, equations.traces_of(p, saved), incoming)
    return p.lay_out(found, p.gradients())


for _op in (RNN_LAYER, LSTM_LAYER, GRU_LAYER):
    implement(_op, "reference", forward, backward, dtypes=("float16", "float32", "float64"))
