"""What a training run leaves behind."""

from __future__ import annotations

from os import PathLike
from typing import Any

from nnlib.callbacks.base import Callback, Logs


class History(Callback):
    """The record that `fit` returns, as in Keras.

    history: name (loss, accuracy, val_loss ...) -> one number an epoch. epoch: the epochs' numbers from 0.
    seconds: how long each epoch's training took, without its validation.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []
        self.seconds: list[float] = []
        # A value need not be there in every epoch: see fit's validation_freq.
        self._epochs_of: dict[str, list[int]] = {}

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)
            self._epochs_of.setdefault(name, []).append(epoch)

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Draws each value against the epochs, training and validation together, one picture below the other.

        path: where to save it (.png, .svg, .pdf ...); without, the figure is only returned. Returns matplotlib's
        Figure. Raises ImportError if matplotlib is not installed, ValueError if there is no epoch.
        """
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError as error:
            raise ImportError("History.plot needs the package matplotlib: pip install nnlib-kernels[plot]") from error
        names = [name for name in self.history if not name.startswith("val_")]
        if not names:
            raise ValueError("plot: at least one epoch is expected, got none")
        figure = Figure(figsize=(6.4, 2.6 * len(names)), layout="constrained")
        for axes, name in zip(figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0], names, strict=True):
            for key, label in ((name, "training"), (f"val_{name}", "validation")):
                if key in self.history:
                    epochs = [number + 1 for number in self._epochs_of[key]]
                    axes.plot(epochs, self.history[key], marker="o", markersize=3, label=label)
            axes.set_ylabel(name.replace("_", " "))
            axes.grid(alpha=0.3)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if any(name.startswith("val_") for name in self.history):
            figure.axes[0].legend()
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def state(self) -> Any:
        names = ("history", "epoch", "seconds", "_epochs_of")
        return {name: getattr(self, name) for name in names}

    def set_state(self, state: Any) -> None:
        vars(self).update(state)

    def __repr__(self) -> str:
        latest = ", ".join(f"{name}={values[-1]:.4f}" for name, values in self.history.items())
        return f"History({len(self.epoch)} epochs{': ' if latest else ''}{latest})"
