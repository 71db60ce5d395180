"""Rows of different lengths in one array (N, T, ...), padded at their end: lengths, and what follows from them.

Keras marks real steps with a mask (N, T). Kernels take lengths (N,), so that they never touch the padding; a mask with
real steps behind padded ones has none and is refused.
"""

from __future__ import annotations

import torch


def lengths_of_mask(caller: str, mask: torch.Tensor, what: str = "mask") -> torch.Tensor:
    """How many steps of each row are real, int64 (N,), from a bool mask (N, T), True for real ones.

    Raises TypeError for another dtype, ValueError naming the caller where a real step comes after a padded one.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"{caller}: {what} must be bool, True for real steps, got {mask.dtype}")
    if mask.dim() != 2:
        raise ValueError(f"{caller}: {what} must have shape (N, T), got {tuple(mask.shape)}")
    late = mask[:, 1:] & ~mask[:, :-1]
    rule = f"{caller}: {what} must have its padding at the end of each row (padding='post')"
    if torch.compiler.is_compiling() or late.is_cuda:  # where looking would break the graph, or wait for the device
        torch._assert_async(~late.any(), rule)
    elif late.any():
        row, step = (int(position) for position in late.nonzero()[0])
        raise ValueError(f"{rule}, got a real step {step + 1} after a padded one in row {row}")
    return mask.sum(1)


def resolve_lengths(
    caller: str, x: torch.Tensor, lengths: torch.Tensor | None, mask: torch.Tensor | None
) -> torch.Tensor | None:
    """The lengths of the rows of x (N, T, ...), given as such or as a mask. Raises ValueError for both."""
    if mask is None:
        return None if lengths is None else torch.as_tensor(lengths, device=x.device)
    if lengths is not None:
        raise ValueError(f"{caller}: lengths or mask must be given, got both")
    if tuple(mask.shape) != tuple(x.shape[:2]):
        raise ValueError(f"{caller}: mask must have shape {tuple(x.shape[:2])}, got {tuple(mask.shape)}")
    return lengths_of_mask(caller, mask)


def checked_mask(caller: str, mask: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The mask as bool, from bool or integers. Raises TypeError for floating point, ValueError for another shape."""
    if mask.is_floating_point():
        raise TypeError(f"{caller}: mask must be bool, True for real steps, got {mask.dtype}")
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{caller}: mask must have shape {tuple(shape)}, got {tuple(mask.shape)}")
    return mask.bool()


def real_steps(lengths: torch.Tensor, steps: int) -> torch.Tensor:
    """The mask (N, T) of the lengths: True where a step is real."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def take_steps(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x[n, index[n, t]] for x (N, T, F) and index (N, T)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def reversed_rows(x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Every row's real steps in reverse order, from its first step on; the padding stays behind them."""
    if lengths is None:
        return x.flip(1)
    steps = torch.arange(x.shape[1], device=x.device)
    turned = lengths[:, None] - 1 - steps
    return take_steps(x, torch.where(turned >= 0, turned, steps))


def last_repeated(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Every padded step of x (N, T, F) replaced by its row's last real one; a row without any keeps its first."""
    steps = torch.arange(x.shape[1], device=x.device)
    return take_steps(x, torch.minimum(steps, (lengths[:, None] - 1).clamp(min=0)))


def moved_to_end(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Every row's real steps moved to its end, and zeros before them."""
    steps = torch.arange(x.shape[1], device=x.device)
    source = steps - (x.shape[1] - lengths[:, None])
    return take_steps(x, source.clamp(min=0)).masked_fill((source < 0)[:, :, None], 0)
