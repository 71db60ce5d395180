"""fit's loop: epochs of batches, validation, callbacks and progress, from a state that can be kept and taken up."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

from nnlib import random
from nnlib.callbacks.backup import BackupAndRestore
from nnlib.callbacks.base import Callback, CallbackList
from nnlib.callbacks.control import TerminateOnNaN
from nnlib.calling import in_mode
from nnlib.training.data import Stream
from nnlib.training.history import History
from nnlib.training.progress import EpochProgress
from nnlib.training.setup import Trackers
from nnlib.training.steps import Steps, raise_not_finite


class FitLoop:
    """Trains from epoch to epoch. epoch and step say what comes next.

    validation: the batches to evaluate on after every `validation_freq` epochs, or None. The rest: see Model.fit.
    """

    def __init__(
        self,
        steps: Steps,
        stream: Stream,
        *,
        epochs: int,
        initial_epoch: int,
        validation: Stream | None,
        validation_freq: int,
        callbacks: Iterable[Callback] | Callback | None,
        verbose: str | int,
    ) -> None:
        self.steps = steps
        self.stream = stream
        self.epoch = initial_epoch
        self.step = 0
        self.epochs = epochs
        self.validation = validation
        self.validation_freq = validation_freq
        self.verbose = verbose
        self.trackers = Trackers(steps.setup)
        self.history = History()
        names = steps.setup.value_names
        params = {
            "epochs": epochs,
            "steps": stream.steps_expected,
            "verbose": verbose,
            "metrics": [*names, *(f"val_{name}" for name in names if validation is not None)],
        }
        chosen = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
        backups = [callback for callback in chosen if isinstance(callback, BackupAndRestore)]
        others = [callback for callback in chosen if not isinstance(callback, BackupAndRestore)]
        # Backups come last, so that they see what the other callbacks made of an epoch.
        self.callbacks = CallbackList([*others, self.history, *backups], steps.model, params)
        for backup in backups:
            backup.loop = self
        steps.stops_on_nan = any(isinstance(callback, TerminateOnNaN) for callback in others)

    def run(self) -> History:
        """All epochs that are left, or until model.stop_training."""
        model = self.steps.model
        model.stop_training = False
        self.steps.setup.ready(model)
        logs: dict[str, float] = {}
        with in_mode(model, training=True):
            self.callbacks.call("on_train_begin")
            while self.epoch < self.epochs and not model.stop_training:
                logs = self._run_epoch()
            self.callbacks.call("on_train_end", logs=logs)
        return self.history

    def _run_epoch(self) -> dict[str, float]:
        epoch, model = self.epoch, self.steps.model
        title = f"Epoch {epoch + 1}/{self.epochs}"
        model.train()
        if self.step == 0:
            self.callbacks.call("on_epoch_begin", epoch)
        with EpochProgress(title, self.stream.samples_expected, self.verbose) as progress:
            start = time.perf_counter()
            for batch in self.stream.epoch(self.step):
                number = self.step
                if self.callbacks.listens("on_train_batch_begin"):
                    self.callbacks.call("on_train_batch_begin", number)
                self.steps.train(batch, self.trackers, f"{title}, step {number + 1}")
                self.step += 1
                progress.advance(len(batch), self.trackers.read)
                self.callbacks.at_batch_end("train", number, self.trackers.read)
                if model.stop_training:
                    break
            values = self.trackers.read()
            if not math.isfinite(values["loss"]) and not self.steps.stops_on_nan:
                raise_not_finite(values["loss"], title)
            seconds = time.perf_counter() - start
            if self.validation is not None and (epoch + 1) % self.validation_freq == 0:
                measured = evaluate(self.steps, self.validation, self.callbacks)
                values.update({f"val_{name}": value for name, value in measured.items()})
            progress.finish(values, seconds)
        self.history.seconds.append(seconds)
        self.epoch, self.step, self.trackers = epoch + 1, 0, Trackers(self.steps.setup)
        self.callbacks.call("on_epoch_end", epoch, logs=values)
        return values

    # For BackupAndRestore.

    def state(self) -> dict[str, Any]:
        """All that the rest of the run follows from."""
        model, setup = self.steps.model, self.steps.setup
        held = setup.batches_held > 0
        return {
            "epoch": self.epoch,
            "step": self.step,
            "stop_training": model.stop_training,
            "weights": dict(model.state_dict()),
            "optimizer": setup.ready(model).state_dict(),
            "scaler": None if setup.scaler is None else setup.scaler.state_dict(),
            "batches_held": setup.batches_held,
            "gradients": {name: p.grad for name, p in model.named_parameters() if held and p.grad is not None},
            "stream": self.stream.state(),
            "trackers": self.trackers.state(),
            "callbacks": [(type(callback).__name__, callback.state()) for callback in self.callbacks.callbacks],
            "random": random.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave, in this process or another.

        Raises ValueError if the callbacks differ, RuntimeError or ValueError if the model or the optimizer does.
        """
        model, setup = self.steps.model, self.steps.setup
        names = [type(callback).__name__ for callback in self.callbacks.callbacks]
        kept = [name for name, _ in state["callbacks"]]
        if names != kept:
            raise ValueError(f"callbacks: those of the run that is taken up are expected, {kept}, got {names}")
        model.load_state_dict(state["weights"])
        setup.ready(model).load_state_dict(state["optimizer"])
        if setup.scaler is not None and state["scaler"] is not None:
            setup.scaler.load_state_dict(state["scaler"])
        setup.batches_held = state["batches_held"]
        for name, parameter in model.named_parameters():
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.epoch, self.step = state["epoch"], state["step"]
        model.stop_training = state["stop_training"]
        self.trackers.set_state(state["trackers"])
        for callback, (_, entry) in zip(self.callbacks.callbacks, state["callbacks"], strict=True):
            if entry is not None:
                callback.set_state(entry)
        self.stream.set_state(state["stream"])
        random.set_state(state["random"])


def evaluate(
    steps: Steps, stream: Stream, callbacks: CallbackList, progress: EpochProgress | None = None
) -> dict[str, float]:
    """The loss and the metrics over an epoch of the stream, from its beginning, in evaluation mode."""
    trackers = Trackers(steps.setup)
    stream.rewind()
    with steps.evaluating():
        callbacks.call("on_test_begin")
        for number, batch in enumerate(stream.epoch()):
            if callbacks.listens("on_test_batch_begin"):
                callbacks.call("on_test_batch_begin", number)
            steps.measure(batch, trackers)
            if progress is not None:
                progress.advance(len(batch), trackers.read)
            callbacks.at_batch_end("test", number, trackers.read)
        values = trackers.read()
        callbacks.call("on_test_end", logs=values)
    return values
