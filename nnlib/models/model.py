"""Model: a torch.nn.Module that can be compiled, fitted, evaluated and asked, as in Keras."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import safetensors.torch
import torch

from nnlib import ops
from nnlib.layers.base import Layer, Shape
from nnlib.models.summary import summary_text
from nnlib.training.data import Array, Samples, batches, check_lengths, split_tail, to_tensor
from nnlib.training.history import History
from nnlib.training.losses import Loss, LossFunction, get_loss
from nnlib.training.metrics import Mean, MetricFunction, accuracy, get_metric
from nnlib.training.optimizers import OptimizerChoice, check_optimizer, make_optimizer
from nnlib.training.progress import EpochProgress


@dataclass
class Training:
    """What compile was told. No part of it is the model's to save, so that it is kept off torch's registers."""

    optimizer_choice: OptimizerChoice
    loss: Loss
    metrics: list[tuple[str, MetricFunction]]
    optimizer: torch.optim.Optimizer | None = None


class Model(torch.nn.Module):
    """The base of models. A subclass writes `forward` and `compute_output_shape`, and `build` if it builds late.

    device: where parameters are made (default: torch's default device). backend: the kernels' backend for all layers
    that name none (default None: kernels' own choice). name: default the class' name in lower case.
    """

    def __init__(
        self,
        *,
        device: torch.device | str | None = None,
        backend: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.made_on = device
        self.backend = backend
        self.name = name or type(self).__name__.lower()
        self._training_setup: Training | None = None

    # What a subclass is asked for.

    def build(self, input_shape: Shape) -> None:
        """Makes all parameters for inputs of this shape, batch first. By default they exist from the start."""

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The output's shape for inputs of this shape, batch first."""
        raise NotImplementedError(f"{type(self).__name__} must define compute_output_shape(input_shape)")

    @property
    def ends_in_softmax(self) -> bool:
        """Whether forward takes apply_softmax=False to give logits."""
        return False

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Inputs of one sample, of zeros, for `summary`."""
        raise NotImplementedError(f"summary: {type(self).__name__} needs inputs of one sample: model.summary(x)")

    def output_shapes(self) -> dict[str, Shape]:
        """Output shapes of layers by their path in the model, where they are known better than by the layers."""
        return {}

    def summary(self, *inputs: torch.Tensor, print_fn: Callable[[str], object] = print) -> None:
        """Prints for each layer its output shape, its parameters, the floating-point operations for one sample, and the
        kernels that will run, which are not run for it.

        inputs: of one sample, (1, ...) (default: zeros, where the model knows its input). print_fn: what prints.

        Raises RuntimeError if the model is not built, BackendError if its backend cannot run it.
        """
        inputs = inputs or self.example_inputs()
        print_fn(summary_text(self, self.name, self.output_shapes(), inputs))

    # Where and with what it computes.

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        first = next(self.parameters(), None)
        return torch.device(self.made_on or torch.get_default_device()) if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' floating-point type."""
        kinds = (parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())
        return next(kinds, torch.get_default_dtype())

    def to_backend(self, backend: str | None) -> Model:
        """Has every layer, and the loss, computed by this backend of kernels; None leaves the choice to kernels.

        Nothing else changes: weights, device and optimizer state stay. Returns the model. A name that is unknown or
        cannot run is reported by kernels at the first call, with its reasons.
        """
        self.backend = backend
        for module in self.modules():
            if isinstance(module, Layer):
                module.backend = backend
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, torch.nn.Module):
            self._adopt(value)

    def _adopt(self, module: torch.nn.Module) -> None:
        """Hands the model's backend and device to the layers of a module that name none."""
        for layer in module.modules():
            if isinstance(layer, Layer):
                layer.adopt(self.backend, self.made_on)

    # Training.

    def compile(
        self,
        optimizer: OptimizerChoice = "rmsprop",
        loss: str | Loss | LossFunction = "sparse_categorical_crossentropy",
        metrics: Sequence[str | MetricFunction] = (),
    ) -> None:
        """Chooses how to train. (The compiler that torch.nn.Module has under this name is torch.compile(model).)

        optimizer: "adam", "sgd" or "rmsprop" with Keras' defaults and arithmetic, a torch.optim.Optimizer made from
        this model's parameters, or a function from the list of parameters to one.
        loss: "sparse_categorical_crossentropy" (labels), "categorical_crossentropy" (one row of probabilities a
        sample), "mse", or a function of (output, targets). Where the model ends in a softmax the cross-entropies are
        computed from the logits.
        metrics: "accuracy", or functions of (output, targets) that give the mean over the batch.

        Raises ValueError for an unknown name, with the known ones; TypeError for another kind.
        """
        check_optimizer(optimizer)
        if isinstance(metrics, str):
            raise TypeError(f"metrics: a list is expected, got {metrics!r}")
        self._training_setup = Training(optimizer, get_loss(loss), [get_metric(metric) for metric in metrics])

    def fit(
        self,
        x: Array,
        y: Array,
        batch_size: int = 32,
        epochs: int = 1,
        verbose: str | int = "auto",
        *,
        validation_split: float = 0.0,
        validation_data: tuple[Array, Array] | None = None,
        shuffle: bool = True,
        initial_epoch: int = 0,
    ) -> History:
        """Trains on the rows of x and y and returns the History of losses and metrics, one value an epoch.

        x: NumPy array or tensor (N, ...); floating-point input is converted to the model's type. y: (N, ...) as the
        loss wants it. epochs: the number of the last epoch, counted from 1; initial_epoch: how many are done already.
        validation_data: (x, y) to evaluate after each epoch; or validation_split: the share of the last rows that is
        kept for it. shuffle: a new order each epoch, see nnlib.set_seed.
        verbose: 0 silent, 2 one line an epoch, 1 or "auto" the line and on a terminal a bar before it.

        Raises RuntimeError before compile; ValueError for data that does not fit; FloatingPointError when the loss
        is no longer finite.
        """
        self._setup("fit")
        check_lengths(x, y)
        if validation_data is None and validation_split:
            (x, y), validation_data = split_tail(x, y, validation_split)
        samples = self._prepare(x, y)
        validation = None if validation_data is None else self._prepare(*validation_data, prefix="validation ")
        history = History()
        was_training = self.training
        try:
            for epoch in range(initial_epoch, epochs):
                title = f"Epoch {epoch + 1}/{epochs}"
                with EpochProgress(title, len(samples.x), verbose) as progress:
                    start = time.perf_counter()
                    values = self._train_epoch(samples, batch_size, shuffle, progress, title)
                    seconds = time.perf_counter() - start
                    if validation is not None:
                        measured = self._evaluate(validation, batch_size)
                        values.update({f"val_{name}": value for name, value in measured.items()})
                    progress.finish(values, seconds)
                history.add(epoch, values, seconds)
        finally:
            self.train(was_training)
        return history

    def train_on_batch(self, x: Array, y: Array) -> list[float]:
        """One step of training on one batch; returns [loss, *metrics] from before the step. Errors as in fit."""
        self._setup("train_on_batch")
        samples = self._prepare(x, y)
        was_training = self.training
        self.train()
        try:
            means = self._new_means()
            self._train_step(samples.x.to(self.device), samples.y.to(self.device), means, "train_on_batch")
        finally:
            self.train(was_training)
        return list(_read(means).values())

    def evaluate(self, x: Array, y: Array, batch_size: int = 32, verbose: str | int = "auto") -> list[float]:
        """[loss, *metrics] over all rows of x and y, as means over samples. Errors as in fit."""
        self._setup("evaluate")
        samples = self._prepare(x, y)
        with EpochProgress("Evaluate", len(samples.x), verbose) as progress:
            start = time.perf_counter()
            values = self._evaluate(samples, batch_size, progress)
            progress.finish(values, time.perf_counter() - start)
        return list(values.values())

    def predict(self, x: Array, batch_size: int = 32, verbose: str | int = "auto") -> np.ndarray:
        """The outputs for all rows of x as one NumPy array. verbose: 1 or "auto" shows a bar on a terminal."""
        inputs = to_tensor("x", x, dtype=self.dtype)
        outputs = []
        with self._evaluating(), EpochProgress("Predict", len(inputs), verbose) as progress:
            for batch, _ in batches(Samples(inputs, inputs), batch_size, shuffle=False, device=self.device):
                outputs.append(self(batch).cpu())
                progress.advance(len(batch), dict)
        return torch.cat(outputs).numpy()

    # Keeping.

    def save_weights(self, path: str | PathLike[str]) -> None:
        """Writes state_dict() to a safetensors file."""
        safetensors.torch.save_file({name: t.contiguous() for name, t in self.state_dict().items()}, path)

    def load_weights(self, path: str | PathLike[str]) -> None:
        """Reads what save_weights wrote into a built model of the same layers. Raises RuntimeError if they differ."""
        self.load_state_dict(safetensors.torch.load_file(path))

    # How it is done.

    def _setup(self, caller: str) -> Training:
        if self._training_setup is None:
            raise RuntimeError(f"{caller}: the model must be compiled first: model.compile(optimizer=..., loss=...)")
        return self._training_setup

    def _prepare(self, x: Array, y: Array, prefix: str = "") -> Samples:
        check_lengths(x, y, prefix)
        inputs = to_tensor(f"{prefix}x", x, dtype=self.dtype)
        targets = to_tensor(f"{prefix}y", y)
        self.build((None, *inputs.shape[1:]))
        loss = self._setup("fit").loss
        loss.check_targets(targets, self.compute_output_shape((None, *inputs.shape[1:])))
        return Samples(inputs, loss.prepare(targets))

    def _new_means(self) -> list[Mean]:
        return [Mean("loss"), *(Mean(name) for name, _ in self._setup("fit").metrics)]

    def _forward_loss(self, x: torch.Tensor, y: torch.Tensor, means: list[Mean]) -> torch.Tensor:
        """The loss of a batch; adds it and the metrics to the means."""
        setup = self._setup("fit")
        from_logits = setup.loss.takes_logits and self.ends_in_softmax
        output = self(x, apply_softmax=False) if from_logits else self(x)
        loss = setup.loss(output, y, from_logits=from_logits, backend=self.backend)
        means[0].add(loss, len(x))
        with torch.no_grad():
            output = output.detach()
            # Accuracy is the same on logits; other functions are promised the model's output.
            if from_logits and any(function is not accuracy for _, function in setup.metrics):
                output = ops.call("metrics", "softmax", output, dim=-1, backend=self.backend)
            for mean, (_, function) in zip(means[1:], setup.metrics, strict=True):
                mean.add(function(output, y), len(x))
        return loss

    def _train_step(self, x: torch.Tensor, y: torch.Tensor, means: list[Mean], where: str) -> None:
        setup = self._setup("fit")
        if setup.optimizer is None:
            trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
            setup.optimizer = make_optimizer(setup.optimizer_choice, trainable)
        loss = self._forward_loss(x, y, means)
        # Reading the loss waits for a GPU; there the mean is looked at when the epoch ends.
        if loss.device.type == "cpu":
            _check_finite(float(loss.detach()), where)
        setup.optimizer.zero_grad()
        loss.backward()
        setup.optimizer.step()

    def _train_epoch(
        self, samples: Samples, batch_size: int, shuffle: bool, progress: EpochProgress, title: str
    ) -> dict[str, float]:
        self.train()
        means = self._new_means()
        device = self.device
        for step, (x, y) in enumerate(batches(samples, batch_size, shuffle=shuffle, device=device)):
            self._train_step(x, y, means, f"{title}, step {step + 1}")
            progress.advance(len(x), lambda: _read(means))
        values = _read(means)
        _check_finite(values["loss"], title)
        return values

    def _evaluate(self, samples: Samples, batch_size: int, progress: EpochProgress | None = None) -> dict[str, float]:
        means = self._new_means()
        with self._evaluating():
            for x, y in batches(samples, batch_size, shuffle=False, device=self.device):
                self._forward_loss(x, y, means)
                if progress is not None:
                    progress.advance(len(x), lambda: _read(means))
        return _read(means)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Within the block the model is in evaluation mode and no gradients are kept."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)


def _read(means: Sequence[Mean]) -> dict[str, float]:
    return {mean.name: mean.value() for mean in means}


def _check_finite(loss: float, where: str) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"{where}: the loss must be finite, got {loss}; look for NaN in x, or lower the learning rate"
        )
