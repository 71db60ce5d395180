"""Callbacks that watch a value: EarlyStopping, ReduceLROnPlateau, ModelCheckpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from nnlib.callbacks.base import Callback, Logs
from nnlib.callbacks.rate import get_rate, scale_rate
from nnlib.names import look_up


class MonitorCallback(Callback):
    """What watches one value of logs, and knows which of two is better.

    monitor: its name. mode: "min", "max", or "auto": as the metric says of itself (the loss: min). min_delta: a smaller
    change is none. Raises ValueError for an unknown mode; in fit, for a monitor that logs do not have, with those that
    they have, and for a metric that does not say which way is better.
    """

    def __init__(self, monitor: str, mode: str, min_delta: float = 0.0) -> None:
        self.monitor = monitor
        self.mode = look_up("mode", mode, {known: known for known in ("auto", "min", "max")})
        self.min_delta = abs(min_delta)
        self.best: float | None = None

    def current(self, logs: Logs | None) -> float | None:
        """The watched value, None in an epoch that has none (see fit's validation_freq)."""
        logs = logs or {}
        if self.monitor in logs:
            return logs[self.monitor]
        if self.monitor in self.params["metrics"]:
            return None
        return look_up(f"{type(self).__name__}: monitor", self.monitor, {name: logs[name] for name in logs})

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether value is better than another by more than min_delta; anything is better than None."""
        if than is None:
            return True
        return value - self.min_delta > than if self._wants_large() else value + self.min_delta < than

    def _wants_large(self) -> bool:
        if self.mode != "auto":
            return self.mode == "max"
        direction = self.model.metric_directions.get(self.monitor.removeprefix("val_"))
        if direction is None:
            raise ValueError(
                f"{type(self).__name__}: mode: 'min' or 'max' is expected where nobody knows which is better, "
                f"got 'auto' for {self.monitor!r}"
            )
        return direction == "max"


class EarlyStopping(MonitorCallback):
    """Ends fit when a value has stopped getting better, keras.callbacks.EarlyStopping.

    patience: so many epochs without an improvement are waited for (default 0). baseline: a value that must be beaten
    within this time. restore_best_weights: put the best epoch's weights back at the end. start_from_epoch: epochs
    before this one are not looked at. verbose: 1 says so. monitor, min_delta, mode: see MonitorCallback.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = patience
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self.on_train_begin()

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.wait = 0
        self.stopped_epoch = 0
        self.best = None
        self.best_epoch = 0
        self.best_weights: dict[str, torch.Tensor] | None = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        current = self.current(logs)
        if current is None or epoch < self.start_from_epoch:
            return
        if self.best_weights is None:
            self._keep(epoch)
        self.wait += 1
        if self.is_better(current, self.best):
            self.best = current
            self._keep(epoch)
            if self.baseline is None or self.is_better(current, self.baseline):
                self.wait = 0
            return
        if self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self.stopped_epoch > 0 and self.verbose:
            print(f"Epoch {self.stopped_epoch + 1}: early stopping", flush=True)
        if self.best_weights is not None:
            if self.verbose:
                print(f"Weights of the best epoch, {self.best_epoch + 1}, are put back", flush=True)
            self.model.load_state_dict(self.best_weights)

    def _keep(self, epoch: int) -> None:
        self.best_epoch = epoch
        if self.restore_best_weights:
            self.best_weights = {name: value.clone() for name, value in self.model.state_dict().items()}

    def state(self) -> Any:
        names = ("wait", "stopped_epoch", "best", "best_epoch", "best_weights")
        return {name: getattr(self, name) for name in names}

    def set_state(self, state: Any) -> None:
        vars(self).update(state)


class ReduceLROnPlateau(MonitorCallback):
    """Multiplies the learning rate by `factor` when a value has stopped getting better,
    keras.callbacks.ReduceLROnPlateau.

    patience: after so many epochs without an improvement. cooldown: so many epochs are then not looked at. min_lr: the
    rate never falls below. verbose: 1 says so. logs get "learning_rate". Raises ValueError if factor is not below 1.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        if not 0 < factor < 1:
            raise ValueError(f"factor: a number between 0 and 1 is expected, got {factor}")
        self.factor = factor
        self.patience = patience
        self.verbose = verbose
        self.cooldown = cooldown
        self.min_lr = min_lr
        self.on_train_begin()

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.wait = 0
        self.cooldown_counter = 0
        self.best = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        current = self.current(logs)
        if logs is not None:
            logs["learning_rate"] = get_rate(self.model)
        if current is None:
            return
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.wait = 0
        if self.is_better(current, self.best):
            self.best = current
            self.wait = 0
        elif self.cooldown_counter == 0:
            self.wait += 1
            if self.wait >= self.patience and get_rate(self.model) > self.min_lr:
                scale_rate(self.model, self.factor, self.min_lr)
                self.cooldown_counter = self.cooldown
                self.wait = 0
                if self.verbose:
                    print(f"Epoch {epoch + 1}: learning rate {get_rate(self.model):g}", flush=True)

    def state(self) -> Any:
        return {name: getattr(self, name) for name in ("wait", "cooldown_counter", "best")}

    def set_state(self, state: Any) -> None:
        vars(self).update(state)


class ModelCheckpoint(MonitorCallback):
    """Saves the model while it trains, keras.callbacks.ModelCheckpoint.

    filepath: where to; {epoch:02d}, {batch} and the names of logs, as in {val_loss:.2f}, are filled in. Folders are
    made. save_best_only: only when the watched value is better than before (initial_value_threshold: than this, at
    first). save_weights_only: model.save_weights instead of model.save. save_freq: "epoch" or so many batches. verbose:
    1 says so. Raises ValueError for another save_freq; in fit, for a filepath with a name that logs do not have.
    """

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        super().__init__(monitor, mode)
        self.filepath = os.fspath(filepath)
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq = check_save_freq(save_freq)
        self.best = initial_value_threshold
        self._epoch = 0
        self._batches = 0
        if save_freq != "epoch":  # otherwise fit need not read a value after each batch
            vars(self)["on_train_batch_end"] = self._at_batch_end

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch

    def _at_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._batches += 1
        if self._batches % int(self.save_freq) == 0:
            self._save(self._epoch, logs or {}, batch=batch + 1)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self.save_freq == "epoch":
            self._save(epoch, logs or {})

    def _save(self, epoch: int, logs: Logs, **more: int) -> None:
        if self.save_best_only:
            current = self.current(logs)
            if current is None or not self.is_better(current, self.best):
                return
            self.best = current
        try:
            path = Path(self.filepath.format(epoch=epoch + 1, **more, **logs))
        except KeyError as error:
            known = ", ".join(("epoch", *more, *logs))
            raise ValueError(f"filepath: names of {known} are expected, got {error} in {self.filepath}") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.save_weights_only:
            self.model.save_weights(path)
        else:
            self.model.save(path)
        if self.verbose:
            print(f"Epoch {epoch + 1}: saved {path}", flush=True)

    def state(self) -> Any:
        return {name: getattr(self, name) for name in ("best", "_epoch", "_batches")}

    def set_state(self, state: Any) -> None:
        vars(self).update(state)


def check_save_freq(save_freq: str | int) -> str | int:
    """Raises ValueError unless it is "epoch" or a positive number of batches."""
    if save_freq != "epoch" and (isinstance(save_freq, (bool, str)) or save_freq < 1):
        raise ValueError(f"save_freq: 'epoch' or a positive number of batches is expected, got {save_freq!r}")
    return save_freq
