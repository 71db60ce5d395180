"""The activations as NumPy equations, and what each one's derivative is read from. Shared by every reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

#: What ``activation=`` of conv2d and linear may be.
FUSED = (None, "relu", "gelu", "silu", "tanh", "sigmoid")

#: Activations whose derivative is a function of their output; the others need their input.
FROM_OUTPUT = ("relu", "tanh", "sigmoid")

Array = np.ndarray[Any, Any]
_erf = np.vectorize(math.erf, otypes=[np.float64])
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
CUBIC = 0.044715


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow for any x."""
    e = np.exp(-np.abs(x))
    result: Array = np.where(x >= 0, 1 / (1 + e), e / (1 + e))
    return np.where(np.isnan(x), x, result).astype(x.dtype)


def _phi(x: Array) -> Array:
    """Cumulative distribution of the standard normal: (1 + erf(x / sqrt 2)) / 2."""
    return (0.5 * (1 + _erf(x.astype(np.float64) / math.sqrt(2)))).astype(x.dtype) if x.size else x.copy()


def _density(x: Array) -> Array:
    """Density of the standard normal."""
    return np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def apply(name: str | None, x: Array) -> Array:
    """act(x), elementwise, in x's dtype; None is the identity, "gelu_tanh" is gelu's tanh approximation.

    gelu: Hendrycks and Gimpel, Gaussian Error Linear Units (2016); silu: Elfwing et al. (2017).
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if name is None:
            return x
        if name == "relu":
            return np.where(x < 0, np.zeros_like(x), x)
        if name == "gelu":
            return (x * _phi(x)).astype(x.dtype)
        if name == "gelu_tanh":
            inner = SQRT_2_OVER_PI * (x + CUBIC * x**3)
            return (0.5 * x * (1 + np.tanh(inner))).astype(x.dtype)
        if name == "silu":
            return (x * sigmoid(x)).astype(x.dtype)
        if name == "sigmoid":
            return sigmoid(x)
        if name == "tanh":
            return np.tanh(x)
    raise AssertionError(f"unknown activation {name}")


def derivative(name: str, value: Array) -> Array:
    """act'(x), elementwise; `value` is the output for the activations in FROM_OUTPUT, else the input."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if name == "relu":
            return np.where(value <= 0, np.zeros_like(value), np.ones_like(value))
        if name == "tanh":
            return 1 - value * value
        if name == "sigmoid":
            return value * (1 - value)
        if name == "gelu":
            return _phi(value) + value * _density(value)
        if name == "gelu_tanh":
            t = np.tanh(SQRT_2_OVER_PI * (value + CUBIC * value**3))
            slope = SQRT_2_OVER_PI * (1 + 3 * CUBIC * value * value)
            return 0.5 * (1 + t) + 0.5 * value * (1 - t * t) * slope
        if name == "silu":
            s = sigmoid(value)
            return s * (1 + value * (1 - s))
    raise AssertionError(f"unknown activation {name}")


def backward(name: str, grad: Array, value: Array) -> Array:
    """grad * act'(x), elementwise; `value` as for `derivative`. relu passes nothing on where it is 0, not even NaN."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if name == "relu":
            return np.where(value <= 0, np.zeros_like(grad), grad)
        found: Array = grad * derivative(name, value)
    return found
