"""The one source of chance: torch's default generators, which initialisers, shuffling and dropout all draw from."""

from __future__ import annotations

import torch


def set_seed(seed: int) -> None:
    """Seeds torch's generators on every device, so that what follows repeats bit for bit.

    seed: an integer in [-2**63, 2**64 - 1]. Initial weights, the order of training samples and dropout follow
    from it. Raises TypeError if it is not an integer.
    """
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed: an integer is expected, got {seed!r}")
    torch.manual_seed(seed)
