"""Checks of arguments that many classes share."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any

import torch


def positive_integer(argument: str, value: Any) -> int:
    """`value`, of Python's or NumPy's integers, as an int. Raises ValueError naming the argument for anything else."""
    try:
        size = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(f"{argument}: a positive integer is expected, got {value!r}")
    return size


def share(argument: str, value: Any, *, below_1: bool = False) -> float:
    """`value`, a number in [0, 1], or in [0, 1) with below_1, as a float. Raises ValueError naming the argument."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not 0 <= value <= 1 or (below_1 and value == 1):
        raise ValueError(f"{argument}: a number in [0, 1{')' if below_1 else ']'} is expected, got {value!r}")
    return float(value)


def usable_device(argument: str, device: torch.device | str | None) -> None:
    """Raises ValueError naming the argument for what is no device of torch's, or a GPU that torch does not find."""
    if device is None:
        return
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{argument}: a device is expected, such as 'cpu' or 'cuda:0', got {device!r}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{argument}: torch finds no CUDA device or driver, got {str(device)!r}")


def default_dtype(dtype: Any) -> None:
    """The `dtype` of layers, losses and metrics: torch's default one, or None for it. Raises ValueError otherwise."""
    default = torch.get_default_dtype()
    if dtype not in (None, default, str(default).removeprefix("torch.")):
        raise ValueError(f"dtype: {default} is expected, torch's default (torch.set_default_dtype), got {dtype!r}")
