"""The one source of chance: torch's default generators, which initialisers, shuffling and dropout all draw from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def set_seed(seed: int) -> None:
    """Seeds torch's generators on every device, so that what follows repeats bit for bit.

    seed: an integer in [-2**63, 2**64 - 1]. Initial weights, the order of training samples and dropout follow
    from it. Raises TypeError if it is not an integer.
    """
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed: an integer is expected, got {seed!r}")
    torch.manual_seed(seed)


def get_state() -> dict[str, Any]:
    """Where the generators of torch (each device's), NumPy and Python are, in tensors and plain values: data sets and
    callbacks may draw from any of them."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(words, dtype=torch.int64), next_gauss],
    }


def set_state(state: dict[str, Any]) -> None:
    """Puts the generators where get_state found them."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), next_gauss))
