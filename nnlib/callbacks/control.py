"""Callbacks that steer: LearningRateScheduler, TerminateOnNaN."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

from nnlib.callbacks.base import Callback, Logs
from nnlib.callbacks.rate import get_rate, set_rate


class LearningRateScheduler(Callback):
    """Sets the learning rate before each epoch, keras.callbacks.LearningRateScheduler.

    schedule: a function of (epoch, rate), or of epoch alone, that gives the rate; epochs count from 0. verbose: 1 says
    so. logs get "learning_rate". In fit, raises ValueError if the schedule gives no finite number of at least 0.
    """

    def __init__(self, schedule: Callable[..., float], verbose: int = 0) -> None:
        self.schedule = schedule
        self.verbose = verbose
        try:
            self._takes_rate = len(inspect.signature(schedule).parameters) > 1
        except ValueError:  # some functions written in C do not say
            self._takes_rate = True

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        given = self.schedule(epoch, get_rate(self.model)) if self._takes_rate else self.schedule(epoch)
        try:
            rate = float(given)
        except (TypeError, ValueError):
            rate = math.nan
        if not 0 <= rate < math.inf:
            raise ValueError(f"schedule: a number of at least 0 is expected for epoch {epoch}, got {given!r}")
        set_rate(self.model, rate)
        if self.verbose:
            print(f"Epoch {epoch + 1}: learning rate {rate:g}", flush=True)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if logs is not None:
            logs["learning_rate"] = get_rate(self.model)


class TerminateOnNaN(Callback):
    """Ends fit, without an error, at the first loss that is not finite, keras.callbacks.TerminateOnNaN.

    Without this callback fit raises FloatingPointError there. Either way that batch changes no weight on a CPU.
    """

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            print(f"Batch {batch}: the loss is {loss}, fit ends", flush=True)
            self.model.stop_training = True
