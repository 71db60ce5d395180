"""The half of a model that trains: compile, fit, evaluate, predict, with Keras' arguments."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from nnlib.callbacks.base import Callback, CallbackList
from nnlib.calling import in_mode
from nnlib.losses import Loss, LossFunction
from nnlib.metrics import Metric, MetricFunction
from nnlib.optimizers import Optimizer, OptimizerFactory
from nnlib.training.data import (
    ArrayBatches,
    Batch,
    Inputs,
    InputTensors,
    LoaderBatches,
    Source,
    Stream,
    is_arrays,
    is_loader,
    split_tail,
    to_inputs,
)
from nnlib.training.gradients import GradientRules
from nnlib.training.history import History
from nnlib.training.loop import FitLoop, evaluate
from nnlib.training.progress import EpochProgress, check_verbose
from nnlib.training.setup import Setup, Trackers, make_setup
from nnlib.training.steps import Steps

if TYPE_CHECKING:
    from nnlib.models.model import Model

Labels = np.ndarray | torch.Tensor
Loader = Iterable[Any]


class Trainable(torch.nn.Module):
    """What nnlib.models.Model trains with. stop_training: set to True within a callback, it ends fit. history: what the
    last fit returned; None before."""

    def __init__(self) -> None:
        super().__init__()
        # No part of it is the model's to save, so that it is kept off torch's registers.
        self.setup: Setup | None = None
        self.stop_training = False
        self.history: History | None = None

    # Choices.

    def compile(
        self,
        optimizer: str | Optimizer | torch.optim.Optimizer | OptimizerFactory = "rmsprop",
        loss: str | Loss | LossFunction = "sparse_categorical_crossentropy",
        metrics: Sequence[str | Metric | MetricFunction] | None = None,
        *,
        weighted_metrics: Sequence[str | Metric | MetricFunction] | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        gradient_accumulation_steps: int | None = None,
        mixed_precision: str | None = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: str | bool = "auto",
    ) -> None:
        """Chooses how to train. (The compiler that torch.nn.Module has under this name is torch.compile(model).)

        optimizer: a name of nnlib.optimizers ("adam", "adamw", "sgd", "rmsprop" ...) with Keras' defaults, an object of
        it, a torch.optim.Optimizer made from this model's parameters, or a function from the list of parameters to one.
        loss: a name of nnlib.losses ("sparse_categorical_crossentropy", "mse" ...), an object of it, a function of
        (y_true, y_pred) as in Keras, or a torch.nn loss module. Where the model ends in a softmax, the cross-entropies
        are computed from the logits. metrics, weighted_metrics: names or objects of nnlib.metrics, or functions of
        (y_true, y_pred). Weights of samples and classes count for weighted_metrics and for the loss alone. clipnorm,
        clipvalue, global_clipnorm, gradient_accumulation_steps: see GradientRules; for any optimizer (those of
        nnlib.optimizers also take them themselves, as in Keras). mixed_precision: "float16" or "bfloat16": products are
        computed in it, weights stay float32. run_eagerly, steps_per_execution, jit_compile: accepted and without
        effect: they choose between Keras' ways to run the same.

        Raises ValueError for an unknown name, with the known ones, and for values out of range; TypeError for another
        kind. That the device has no such precision is a ValueError of fit.
        """
        rules = GradientRules(clipnorm, clipvalue, global_clipnorm, gradient_accumulation_steps)
        self.setup = make_setup(optimizer, loss, metrics, weighted_metrics, rules, mixed_precision)

    @property
    def compiled(self) -> bool:
        """Whether compile was called."""
        return self.setup is not None

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer at work; None before compile, and while the model is not built."""
        if self.setup is None:
            return None
        if self.setup.optimizer is None and any(weight.requires_grad for weight in self.parameters()):
            self.setup.make_optimizer(self._model)
        return self.setup.optimizer

    @property
    def metrics_names(self) -> list[str]:
        """What evaluate gives, in its order: "loss" and the metrics. Raises RuntimeError before compile."""
        return self._compiled("metrics_names").value_names

    @property
    def metric_directions(self) -> dict[str, str | None]:
        """Which way each measured value is better: "min", "max", or None where nobody knows."""
        setup = self._compiled("metric_directions")
        return {"loss": "min", **{m.name: m.direction for m in (*setup.metrics, *setup.weighted_metrics)}}

    # Training.

    def fit(
        self,
        x: Inputs | Loader | None = None,
        y: Labels | None = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Iterable[Callback] | Callback | None = None,
        validation_split: float = 0.0,
        validation_data: Sequence[Any] | Loader | None = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Labels | None = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int = 1,
    ) -> History:
        """Trains, and returns the History of losses and metrics, one value an epoch.

        x: NumPy array or tensor (N, ...), a list of them for a model of several inputs, or a torch DataLoader (or
        another thing to iterate over again and again) of (x, y) or (x, y, weight). Floating-point input is converted to
        the model's type. y: (N, ...) as the loss wants it, None beside a DataLoader. batch_size: of arrays, default 32.
        epochs: the number of the last epoch, counted from 1; initial_epoch: how many are done already. callbacks: see
        nnlib.callbacks. validation_data: (x, y), (x, y, weight) or a DataLoader to evaluate after every validation_freq
        epochs, validation_steps batches of it (default: all); or validation_split: the share of the last rows that is
        kept for it. shuffle: arrays in a new order each epoch, see nnlib.set_seed. class_weight: class number -> weight
        of its samples in the loss; or sample_weight: one weight a sample. steps_per_epoch: so many batches are an
        epoch, and the next one goes on where it ended (default: all). verbose: 0 silent, 2 one line an epoch, 1 or
        "auto" the line and on a terminal a bar before it.

        Raises RuntimeError before compile; ValueError for data that does not fit; FloatingPointError when the loss is
        no longer finite (see callbacks.TerminateOnNaN).
        """
        steps = self._steps("fit")
        check_verbose(verbose)
        epochs, initial_epoch = _epochs("epochs", epochs, 0), _epochs("initial_epoch", initial_epoch, 0)
        validation_freq = _epochs("validation_freq", validation_freq, 1)
        if not isinstance(shuffle, (bool, np.bool_)):
            raise TypeError(f"shuffle: True or False is expected, got {shuffle!r}")
        if validation_data is None and validation_split != 0:
            if not is_arrays(x) or y is None:
                raise ValueError("validation_split: arrays x and y are expected; of a DataLoader give validation_data")
            (x, y, sample_weight), validation_data = split_tail([x, y, sample_weight], validation_split)
        source = _source(steps, x, y, sample_weight, batch_size, shuffle, class_weight)
        device = self._model.device
        steps.setup.admit(self._model)
        validation = None
        if validation_data is not None:
            x_val, y_val, weight_val = _unpack(validation_data)
            size = validation_batch_size
            if size is None and is_arrays(x_val):
                size = batch_size
            held = _source(steps, x_val, y_val, weight_val, size, prefix="validation ")
            validation = Stream(held, validation_steps, device, argument="validation_steps")
        self.history = FitLoop(
            steps,
            Stream(source, steps_per_epoch, device, argument="steps_per_epoch"),
            epochs=epochs,
            initial_epoch=initial_epoch,
            validation=validation,
            validation_freq=validation_freq,
            callbacks=callbacks,
            verbose=verbose,
        ).run()
        return self.history

    def train_on_batch(
        self,
        x: Inputs,
        y: Labels,
        sample_weight: Labels | None = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """One step of training on one batch; returns [loss, *metrics] from before the step, or with return_dict
        {name: value}. Errors as in fit."""
        steps = self._steps("train_on_batch")
        batch = steps.prepare(x, y, sample_weight, class_weight).to(self._model.device)
        steps.setup.admit(self._model)
        trackers = Trackers(steps.setup)
        with in_mode(self, training=True):
            steps.train(batch, trackers, "train_on_batch")
        return _values(trackers.read(), return_dict)

    # Asking.

    def evaluate(
        self,
        x: Inputs | Loader | None = None,
        y: Labels | None = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: Labels | None = None,
        steps: int | None = None,
        callbacks: Iterable[Callback] | Callback | None = None,
        return_dict: bool = False,
    ) -> Any:
        """[loss, *metrics] over all samples, or with return_dict {name: value}. steps: look at so many batches alone.
        The rest, and errors, as in fit."""
        doing = self._steps("evaluate")
        check_verbose(verbose)
        stream = Stream(_source(doing, x, y, sample_weight, batch_size), steps, self._model.device)
        params = {"steps": stream.steps_expected, "verbose": verbose, "metrics": doing.setup.value_names}
        listeners = CallbackList(callbacks, self._model, params)
        with EpochProgress("Evaluate", stream.samples_expected, verbose) as progress:
            start = time.perf_counter()
            values = evaluate(doing, stream, listeners, progress)
            progress.finish(values, time.perf_counter() - start)
        return _values(values, return_dict)

    def test_on_batch(
        self, x: Inputs, y: Labels, sample_weight: Labels | None = None, return_dict: bool = False
    ) -> Any:
        """[loss, *metrics] of one batch, or with return_dict {name: value}. Errors as in fit."""
        steps = self._steps("test_on_batch")
        batch = steps.prepare(x, y, sample_weight).to(self._model.device)
        trackers = Trackers(steps.setup)
        with steps.evaluating():
            steps.measure(batch, trackers)
        return _values(trackers.read(), return_dict)

    def predict(
        self,
        x: Inputs | Loader,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Iterable[Callback] | Callback | None = None,
    ) -> np.ndarray:
        """The outputs for all samples as one NumPy array; bfloat16, which NumPy lacks, becomes float32.

        x: as in fit; of a DataLoader's (x, y) the x is taken. steps: so many batches alone. verbose: 1 or "auto" shows
        a bar on a terminal.
        """
        check_verbose(verbose)
        model = self._model
        source: Source
        if not is_loader(x):
            size = 32 if batch_size is None else batch_size
            source = ArrayBatches(self._asked(x), batch_size=size)
        else:
            _refuse_for_loader(batch_size=batch_size)
            source = LoaderBatches(cast("Loader", x), lambda item: Batch(self._asked(_first(item)), None, None))
        stream = Stream(source, steps, model.device)
        listeners = CallbackList(callbacks, model, {"steps": stream.steps_expected, "verbose": verbose, "metrics": []})
        outputs = []
        with in_mode(self, training=False), torch.no_grad():
            with EpochProgress("Predict", stream.samples_expected, verbose) as progress:
                listeners.call("on_predict_begin")
                for number, batch in enumerate(stream.epoch()):
                    listeners.call("on_predict_batch_begin", number)
                    outputs.append(self._output(batch))
                    progress.advance(len(batch), dict)
                    listeners.call("on_predict_batch_end", number)
                listeners.call("on_predict_end")
        return _to_numpy(torch.cat(outputs))

    def predict_on_batch(self, x: Inputs) -> np.ndarray:
        """The outputs for one batch as a NumPy array."""
        batch = Batch(self._asked(x), None, None).to(self._model.device)
        with in_mode(self, training=False), torch.no_grad():
            return _to_numpy(self._output(batch))

    # How it is done.

    @property
    def _model(self) -> Model:
        return cast("Model", self)

    def _compiled(self, caller: str) -> Setup:
        if self.setup is None:
            raise RuntimeError(f"{caller}: the model must be compiled first: model.compile(optimizer=..., loss=...)")
        return self.setup

    def _steps(self, caller: str) -> Steps:
        return Steps(self._model, self._compiled(caller))

    def _asked(self, x: Any) -> InputTensors:
        """What predict is given, as tensors that the model takes."""
        inputs = to_inputs("x", x, dtype=self._model.dtype)
        self._model.check_inputs(inputs if isinstance(inputs, tuple) else (inputs,))
        return inputs

    def _output(self, batch: Batch) -> torch.Tensor:
        parts = batch.x if isinstance(batch.x, tuple) else (batch.x,)
        if self.setup is None:
            return self(*parts).cpu()
        return Steps(self._model, self.setup).forward(batch.x).cpu()


def _source(
    steps: Steps,
    x: Any,
    y: Any,
    weight: Any,
    batch_size: int | None,
    shuffle: bool = False,
    class_weight: Mapping[int, float] | None = None,
    prefix: str = "",
) -> Source:
    """What gives the batches of these arguments of fit or evaluate."""
    if y is None and is_loader(x):
        _refuse_for_loader(batch_size=batch_size, sample_weight=weight)

        def convert(item: Any) -> Batch:
            if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
                raise ValueError(f"{prefix}x: each batch must be (x, y) or (x, y, weight), got {type(item).__name__}")
            return steps.prepare(item[0], item[1], item[2] if len(item) == 3 else None, class_weight, prefix)

        return LoaderBatches(x, convert)
    batch = steps.prepare(x, y, weight, class_weight, prefix)
    return ArrayBatches(
        batch.x, batch.y, batch.weight, batch_size=32 if batch_size is None else batch_size, shuffle=shuffle
    )


def _epochs(argument: str, value: Any, least: int) -> int:
    """A number of epochs, of Python's or NumPy's integers."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{argument}: a number of epochs is expected, got {value!r}")
    return int(value)


def _refuse_for_loader(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}: it is the DataLoader's to give, got {name}= beside one")


def _unpack(validation_data: Any) -> tuple[Any, Any, Any]:
    if isinstance(validation_data, (tuple, list)) and len(validation_data) in (2, 3) and is_arrays(validation_data[1]):
        x, y, *weight = validation_data
        return x, y, weight[0] if weight else None
    if isinstance(validation_data, Iterable) and not is_arrays(validation_data):
        return validation_data, None, None
    raise ValueError(
        f"validation_data: (x, y), (x, y, weight) or a DataLoader is expected, got {type(validation_data).__name__}"
    )


def _first(item: Any) -> Any:
    return item[0] if isinstance(item, (tuple, list)) else item


def _values(values: dict[str, float], as_dictionary: bool) -> Any:
    return values if as_dictionary else list(values.values())


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
