"""What a training run leaves behind."""

from __future__ import annotations


class History:
    """The record that `fit` returns, as in Keras.

    history: name (loss, accuracy, val_loss ...) -> one number an epoch. epoch: the epochs' numbers from 0.
    seconds: how long each epoch's training took, without its validation.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []
        self.seconds: list[float] = []

    def add(self, epoch: int, values: dict[str, float], seconds: float) -> None:
        """Adds one epoch's values."""
        self.epoch.append(epoch)
        self.seconds.append(seconds)
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)

    def __repr__(self) -> str:
        latest = ", ".join(f"{name}={values[-1]:.4f}" for name, values in self.history.items())
        return f"History({len(self.epoch)} epochs{': ' if latest else ''}{latest})"
