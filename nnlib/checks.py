"""Checks of arguments that many classes share."""

from __future__ import annotations

import operator
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


def default_dtype(dtype: Any) -> None:
    """The `dtype` of layers, losses and metrics: torch's default one, or None for it. Raises ValueError otherwise."""
    default = torch.get_default_dtype()
    if dtype not in (None, default, str(default).removeprefix("torch.")):
        raise ValueError(f"dtype: {default} is expected, torch's default (torch.set_default_dtype), got {dtype!r}")
