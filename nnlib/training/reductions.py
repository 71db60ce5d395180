"""Sums that have the same bits at any number of threads.

torch splits a sum of many numbers into one number among its threads, so that the order of additions follows their
number. It does not split the sum of a row where there are many rows: long tensors are summed in rows first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# Far below the 32,768 numbers from which torch splits a sum.
_ROW = 1024


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of all values, a scalar tensor; differentiable."""
    return _fold(values, lambda rows: rows.sum(-1))


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of all values, a scalar tensor; differentiable."""
    return total(values) / values.numel()


def last_axis_mean(values: torch.Tensor) -> torch.Tensor:
    """The means along the last axis: (..., n) -> (...); differentiable."""
    if values.numel() == values.shape[-1]:  # one row alone
        return mean(values).reshape(values.shape[:-1])
    return values.mean(-1)


def l2_norm(values: torch.Tensor) -> torch.Tensor:
    """The square root of the sum of squares, a scalar tensor."""
    return _fold(values, lambda rows: torch.linalg.vector_norm(rows, dim=-1))


def _fold(values: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    values = values.reshape(-1)
    while len(values) > _ROW:
        rows = len(values) // _ROW
        whole = rows * _ROW
        values = torch.cat([reduce(values[:whole].view(rows, _ROW)), values[whole:]])
    return reduce(values)
