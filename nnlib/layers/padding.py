"""Rows of different lengths in one array (N, T, ...): which steps are real, and what follows from it.

Keras marks real steps with a mask (N, T). Kernels take lengths (N,), so that they never touch the padding behind a row.
What a layer tells the next one is the lengths where all padding is at the end of its row, and else the mask; both go by
the name `lengths`, and travel on the tensor itself, as in Keras: an op of torch in between forgets them. Layers that
walk along a row close the gaps of a mask first, and open them again in their output.
"""

from __future__ import annotations

from typing import Any

import torch


def note_lengths(output: Any, lengths: torch.Tensor | None) -> None:
    """Has the output of a layer, the first of several, tell the next layer which of its steps are real."""
    first = output[0] if isinstance(output, (tuple, list)) else output
    if lengths is not None and isinstance(first, torch.Tensor):
        first._nnlib_lengths = lengths  # type: ignore[attr-defined]


def noted_lengths(x: torch.Tensor) -> torch.Tensor | None:
    """What the layer that made x has told of its steps; None where nobody has."""
    return getattr(x, "_nnlib_lengths", None)


def lengths_of_mask(caller: str, mask: torch.Tensor, what: str = "mask") -> torch.Tensor:
    """Which steps are real, from a bool mask (N, T), True for those: how many of each row, int64 (N,), if they all come
    before its padding, else the mask itself.

    Under torch.compile, which cannot look, they must come before: an error names the caller otherwise. Raises
    ValueError for another shape.
    """
    if mask.dim() != 2:
        raise ValueError(f"{caller}: {what} must have shape (N, T), got {tuple(mask.shape)}")
    late = (mask[:, 1:] & ~mask[:, :-1]).any()
    if torch.compiler.is_compiling():
        rule = f"{caller}: {what} must have its padding at the end of each row (padding='post') under torch.compile"
        torch._assert_async(~late, rule)
    elif late:
        return mask
    return mask.sum(1)


def resolve_lengths(
    caller: str, x: torch.Tensor, lengths: torch.Tensor | None, mask: torch.Tensor | None
) -> torch.Tensor | None:
    """Which steps of x (N, T, ...) are real, given as lengths or as a mask. Raises ValueError for both."""
    if mask is None and lengths is not None:
        lengths = torch.as_tensor(lengths, device=x.device)
        if lengths.dtype != torch.bool:
            return lengths
        lengths, mask = None, lengths
    if mask is None:
        return None
    if lengths is not None:
        raise ValueError(f"{caller}: lengths or mask must be given, got both")
    return lengths_of_mask(caller, checked_mask(caller, mask, tuple(x.shape[:2])))


def checked_mask(caller: str, mask: torch.Tensor, *shapes: tuple[int, ...], argument: str = "mask") -> torch.Tensor:
    """The mask as bool, from bools or from numbers that are 1 and 0, as Keras takes it.

    Raises ValueError for another number (a float mask of torch's is added to the scores), or none of the shapes.
    """
    if tuple(mask.shape) not in shapes:
        allowed = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise ValueError(f"{caller}: {argument} must have shape {allowed}, got {tuple(mask.shape)}")
    if mask.dtype != torch.bool and not torch.compiler.is_compiling():
        wrong = (mask != 0) & (mask != 1)
        if wrong.any():
            raise ValueError(
                f"{caller}: {argument} must be bool, or 1 for True and 0 for False, got {mask[wrong][0].item()}"
            )
    return mask.bool()


def real_steps(lengths: torch.Tensor, steps: int) -> torch.Tensor:
    """The mask (N, T) of the lengths, or the mask that stands for them: True where a step is real."""
    if lengths.dtype == torch.bool:
        return lengths
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


def gaps_closed(x: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every row's real steps of x (N, T, F) moved to its start, in their order, and how many they are, (N,)."""
    return take_steps(x, real.logical_not().long().argsort(dim=1, stable=True)), real.sum(1)


def laid_along(x: torch.Tensor, real: torch.Tensor, *, zero: bool) -> torch.Tensor:
    """The reverse of gaps_closed: the first steps of x (N, T, F) where `real` (N, T) has its real ones.

    Padded steps are 0 if `zero`, else what the last real step before them is, and 0 before the first.
    """
    source = real.long().cumsum(1) - 1
    laid = take_steps(x, source.clamp(min=0))
    return laid.masked_fill((~real if zero else source < 0)[:, :, None], 0)
