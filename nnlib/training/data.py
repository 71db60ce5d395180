"""Samples in, batches out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

Array = np.ndarray | torch.Tensor


class Samples(NamedTuple):
    """Inputs and targets with the same number of rows."""

    x: torch.Tensor
    y: torch.Tensor


def to_tensor(argument: str, values: Array, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of `values`, without a copy where it can be.

    dtype: what floating-point values are converted to (x / 255.0 is float64 in NumPy, a model float32); others
    keep their own. Raises TypeError if it is no array, ValueError if it has no rows.
    """
    if isinstance(values, np.ndarray):
        # torch has no negative strides, and warns on arrays that cannot be written to.
        ready = np.ascontiguousarray(values)
        tensor = torch.from_numpy(ready if ready.flags.writeable else ready.copy())
    elif isinstance(values, torch.Tensor):
        tensor = values
    else:
        raise TypeError(f"{argument}: a NumPy array or a torch tensor is expected, got {type(values).__name__}")
    if tensor.dim() == 0 or len(tensor) == 0:
        raise ValueError(f"{argument}: at least one sample is expected, got shape {tuple(tensor.shape)}")
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def check_lengths(x: Array, y: Array, prefix: str = "") -> None:
    """Raises ValueError if x and y have different numbers of rows."""
    if len(x) != len(y):
        raise ValueError(f"{prefix}x and {prefix}y must have the same number of samples, got {len(x)} and {len(y)}")


def split_tail(x: Array, y: Array, share: float) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Cuts the last `share` of the rows off for validation, before any shuffling, as Keras does.

    share: in (0, 1). Returns (x, y) for training and (x, y) for validation. Raises ValueError if either is empty.
    """
    if not 0 < share < 1:
        raise ValueError(f"validation_split: a number between 0 and 1 is expected, got {share}")
    cut = int(len(x) * (1 - share))
    if cut in (0, len(x)):
        raise ValueError(f"validation_split: {share} of {len(x)} samples leaves one part empty")
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def batches(
    samples: Samples, batch_size: int, *, shuffle: bool, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of rows on `device`, the last one with what is left.

    shuffle: a new random order from torch's generator each time. Raises ValueError if batch_size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: a positive integer is expected, got {batch_size}")
    count = len(samples.x)
    order = torch.randperm(count).to(samples.x.device) if shuffle else None
    for start in range(0, count, batch_size):
        rows = slice(start, start + batch_size) if order is None else order[start : start + batch_size]
        yield samples.x[rows].to(device), samples.y[rows].to(device)
