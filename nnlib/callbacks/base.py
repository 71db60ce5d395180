"""What a callback is: an object with a method for each moment of fit, evaluate and predict, as in Keras."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnlib.models.model import Model

Logs = dict[str, float]


class Callback:
    """The base of callbacks; a subclass writes the methods it needs, with Keras' names and arguments.

    model: the model, once a run has begun; setting `model.stop_training = True` ends fit after the batch. params: what
    the run was asked for: "epochs", "steps", "verbose", and "metrics", the names that logs will have.
    logs: the values so far: of a batch the running means, of an epoch the results with "val_" names too. What an
    on_epoch_end adds to logs goes into History.
    """

    model: Model
    params: dict[str, Any]

    def set_model(self, model: Model) -> None:
        """Called before a run with the model."""
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        """Called before a run with what it was asked for."""
        self.params = params

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """fit begins."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """fit is over; logs are the last epoch's."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """An epoch begins; epochs count from 0."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """An epoch and its validation are over."""

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """A batch begins; batches count from 0 in each epoch."""

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """A batch is over. A callback that writes this method makes fit wait for the device after each batch."""

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """evaluate, or the validation in fit, begins."""

    def on_test_end(self, logs: Logs | None = None) -> None:
        """evaluate, or the validation in fit, is over."""

    def on_test_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """A batch of it begins."""

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """A batch of it is over."""

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        """predict begins."""

    def on_predict_end(self, logs: Logs | None = None) -> None:
        """predict is over."""

    def on_predict_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """A batch of it begins."""

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """A batch of it is over."""

    def state(self) -> Any:
        """What BackupAndRestore keeps of this callback: tensors and plain values in dictionaries and lists."""
        return None

    def set_state(self, state: Any) -> None:
        """Goes on from what `state` gave, in another process."""


class LambdaCallback(Callback):
    """Functions as a callback: LambdaCallback(on_epoch_end=lambda epoch, logs: ...), with the names of the methods.

    Raises TypeError for a name that is no method of Callback.
    """

    def __init__(self, **functions: Callable[..., Any]) -> None:
        for name, function in functions.items():
            if not name.startswith("on_") or not hasattr(Callback, name):
                raise TypeError(f"{name}: a method of Callback is expected, such as on_epoch_end")
            if not callable(function):
                raise TypeError(f"{name}: a function is expected, got {function!r}")
            setattr(self, name, function)


class CallbackList:
    """The callbacks of a run, called in order. Raises TypeError if one is no Callback."""

    def __init__(self, callbacks: Iterable[Callback] | Callback | None, model: Model, params: dict[str, Any]) -> None:
        if callbacks is None:
            callbacks = []
        elif isinstance(callbacks, Callback):
            callbacks = [callbacks]
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks: objects of nnlib.callbacks.Callback are expected, got {callback!r}")
            callback.set_params(params)
            callback.set_model(model)

    def call(self, moment: str, *arguments: Any, logs: Logs | None = None) -> None:
        """Calls this method of every callback."""
        for callback in self.callbacks:
            getattr(callback, moment)(*arguments, logs)

    def listens(self, moment: str) -> bool:
        """Whether any callback has this method of its own."""
        return any(
            getattr(type(callback), moment) is not getattr(Callback, moment) or moment in vars(callback)
            for callback in self.callbacks
        )

    def at_batch_end(self, kind: str, batch: int, read: Callable[[], Logs]) -> None:
        """Calls on_KIND_batch_end with what `read` gives, which may wait for a device, if any callback listens."""
        moment = f"on_{kind}_batch_end"
        if self.listens(moment):
            self.call(moment, batch, logs=read())
