"""Who trains: this library, PyTorch, Keras."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np


class Trainer(Protocol):
    """A network, its data and its optimizer."""

    def train_epoch(self) -> None:
        """One pass over the data."""

    def accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
        """Share of right answers."""


class OurTrainer:
    """The article's program, as `python -m nnlib train` runs it."""

    def __init__(self, name: str, x: np.ndarray, y: np.ndarray, batch_size: int, seed: int) -> None:
        import nnlib
        from nnlib.programs import PROGRAMS

        nnlib.set_seed(seed)
        self.model = PROGRAMS[name].build(None, None)
        self.model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        self.x, self.y, self.batch_size = x, y, batch_size

    def train_epoch(self) -> None:
        """One pass over the data."""
        self.model.fit(self.x, self.y, batch_size=self.batch_size, epochs=1, verbose=0)

    def accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
        """Share of right answers."""
        found: Any = self.model.evaluate(x, y, batch_size=self.batch_size, verbose=0, return_dict=True)
        return float(found["accuracy"])


def _torch(*arguments: Any) -> Trainer:
    from bench.networks.torch_twins import TorchTrainer

    return TorchTrainer(*arguments)


def _keras(*arguments: Any) -> Trainer:
    from bench.networks.keras_twins import KerasTrainer

    return KerasTrainer(*arguments)


#: name -> makes a trainer of (program, x, y, batch_size, seed).
TRAINERS: dict[str, Callable[..., Trainer]] = {"ours": OurTrainer, "torch": _torch, "keras": _keras}


def missing(name: str) -> str | None:
    """Why a trainer cannot run here; None when it can."""
    if name not in TRAINERS:
        return f"is unknown: {', '.join(TRAINERS)}"
    if name == "keras" and importlib.util.find_spec("keras") is None:
        return 'Keras is not installed: pip install "nnlib-kernels[keras]"'
    return None
