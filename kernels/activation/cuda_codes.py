"""The numbers by which CUDA kernels are told which activation to apply."""

from __future__ import annotations

#: Constants of every .cu file that includes activation.cuh.
CODES = {"RELU": 1, "GELU": 2, "SILU": 3, "TANH": 4, "SIGMOID": 5, "GELU_TANH": 6}


def code_of(activation: str | None) -> int:
    """The number of an activation of kernels.activation.functions; 0 for None."""
    return 0 if activation is None else CODES[activation.upper()]
