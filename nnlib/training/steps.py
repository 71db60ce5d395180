"""One batch: forward, loss, metrics, and in training backward and a step of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from nnlib import ops
from nnlib.calling import in_mode
from nnlib.layers.padding import noted_lengths, real_steps
from nnlib.layers.rules import apply_constraints, losses_of
from nnlib.training.data import Batch, InputTensors, check_lengths, class_weights, first_of, to_inputs, to_tensor
from nnlib.training.setup import Setup, Trackers

if TYPE_CHECKING:
    from nnlib.models.model import Model


class Steps:
    """What a compiled model does with data.

    stops_on_nan: a loss that is not finite changes no weight and is left to the callbacks; otherwise it raises
    FloatingPointError, on a CPU before the weights are changed, elsewhere (where looking waits) after the epoch.
    """

    def __init__(self, model: Model, setup: Setup) -> None:
        self.model = model
        self.setup = setup
        self.stops_on_nan = False
        self._output_shapes: dict[Any, tuple[int | None, ...]] = {}

    # Data, checked.

    def prepare(self, x: Any, y: Any, weight: Any = None, class_weight: Any = None, prefix: str = "") -> Batch:
        """Arrays as tensors in the types that the model and the loss want; it builds the model.

        Raises ValueError or TypeError for data that does not fit. prefix: begins the names in messages.
        """
        inputs = to_inputs(f"{prefix}x", x, dtype=self.model.dtype)
        if y is None:
            raise ValueError(f"{prefix}y: targets are expected beside {prefix}x, got None")
        targets = to_tensor(f"{prefix}y", y)
        check_lengths(inputs, targets, f"{prefix}x and {prefix}y")
        shape = self._output_shape(inputs)
        try:
            targets = self.setup.loss.prepare(targets, shape)
        except ValueError as error:
            raise ValueError(f"{prefix}{error}") from error  # it begins with "y: "
        weights = None
        if weight is not None:
            if class_weight is not None:
                raise ValueError("class_weight and sample_weight: one of the two is expected, got both")
            weights = to_tensor(f"{prefix}sample_weight", weight, dtype=torch.float32)
            check_lengths(inputs, weights, f"{prefix}x and {prefix}sample_weight")
            if weights.shape != targets.shape[: weights.dim()]:
                raise ValueError(
                    f"{prefix}sample_weight: one weight a sample is expected, got shape {tuple(weights.shape)} "
                    f"for targets of {tuple(targets.shape)}"
                )
        elif class_weight is not None:
            weights = class_weights(class_weight, targets, shape)
        return Batch(inputs, targets, weights)

    def _output_shape(self, x: InputTensors) -> tuple[int | None, ...]:
        """The output's shape, batch first. A model that cannot tell is tried on the first sample."""
        parts = x if isinstance(x, tuple) else (x,)
        key = tuple((part.shape[1:], part.dtype) for part in parts)
        if key not in self._output_shapes:
            model = self.model
            model.check_inputs(parts)
            if len(parts) == 1 and model.tells_output_shape:
                shape = (None, *parts[0].shape[1:])
                model.build(shape)
                self._output_shapes[key] = model.compute_output_shape(shape)
            else:
                with self.evaluating():
                    found = self.forward(tuple(part[:1].to(model.device) for part in parts))
                self._output_shapes[key] = (None, *found.shape[1:])
        if self.setup.loss.from_logits and self.model.ends_in_softmax:
            raise ValueError(
                f"loss: from_logits=True needs a model without a softmax at its end, got {self.model.name}; "
                "with from_logits=False the loss is computed from the logits too"
            )
        return self._output_shapes[key]

    # A batch.

    def forward(self, x: InputTensors, **options: Any) -> torch.Tensor:
        """The model's output, in mixed precision where that was chosen."""
        parts = x if isinstance(x, tuple) else (x,)
        precision = self.setup.precision
        block = nullcontext() if precision is None else torch.autocast(first_of(x).device.type, precision)
        with block:
            return self.model(*parts, **options)

    def measure(self, batch: Batch, trackers: Trackers) -> torch.Tensor:
        """The loss of a batch; adds it and the metrics to the trackers."""
        setup, model, targets = self.setup, self.model, batch.y
        assert targets is not None
        skips_softmax = setup.loss.takes_logits and model.ends_in_softmax
        output = self.forward(batch.x, apply_softmax=False) if skips_softmax else self.forward(batch.x)
        real = _real_outputs(output)
        if setup.precision is not None:
            output = output.to(model.dtype)
        loss = setup.loss.compute(
            targets,
            output,
            _without_padding(batch.weight, real, mean=setup.loss.reduction in ("sum_over_batch_size", "mean")),
            from_logits=skips_softmax or setup.loss.from_logits,
            backend=model.backend,
        )
        for penalty in losses_of(model):
            loss = loss + penalty.to(loss.dtype)
        if loss.dim():
            raise ValueError(f"loss: a number is expected of {setup.loss.name}, got shape {tuple(loss.shape)}")
        with torch.no_grad():
            trackers.loss.add_loss(loss, len(batch))
            output = output.detach()
            metrics = [*trackers.metrics, *trackers.weighted_metrics]
            if skips_softmax and not all(metric.takes_logits for metric in metrics):
                output = ops.call("metrics", "softmax", output, dim=-1, backend=model.backend)
            for metric in trackers.metrics:
                metric.update_state(targets, output, _without_padding(None, real if metric.skips_padding else None))
            for metric in trackers.weighted_metrics:
                weight = _without_padding(batch.weight, real if metric.skips_padding else None)
                metric.update_state(targets, output, weight)
        return loss

    def train(self, batch: Batch, trackers: Trackers, where: str) -> None:
        """Forward, backward, and the optimizer's step where one is due. where: begins the message about NaN."""
        setup = self.setup
        loss = self.measure(batch, trackers)
        # Reading the loss waits for a GPU; there the mean is looked at when the epoch ends.
        if loss.device.type == "cpu" and not math.isfinite(value := float(loss.detach())):
            if self.stops_on_nan:
                return
            raise_not_finite(value, where)
        optimizer = setup.ready(self.model)
        if setup.batches_held == 0:
            _forget_gradients(optimizer)
        (loss if setup.scaler is None else setup.scaler.scale(loss)).backward()
        setup.batches_held += 1
        if setup.batches_held >= setup.rules.batches_per_step:
            self._step(optimizer)

    @torch.no_grad()
    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        setup = self.setup
        if setup.scaler is not None:
            setup.scaler.unscale_(optimizer)
        if setup.batches_held > 1 or setup.rules.clips:
            gradients = [
                parameter.grad
                for group in optimizer.param_groups
                for parameter in group["params"]
                if parameter.grad is not None
            ]
            if setup.batches_held > 1:
                torch._foreach_div_(gradients, setup.batches_held)
            setup.rules.clip(gradients)
        if setup.scaler is None:
            optimizer.step()
        else:
            setup.scaler.step(optimizer)
            setup.scaler.update()
        apply_constraints(self.model)
        setup.batches_held = 0

    # The model's mode.

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within the block the model is in evaluation mode and no gradients are kept."""
        with in_mode(self.model, training=False), torch.no_grad():
            yield


def _real_outputs(output: torch.Tensor) -> torch.Tensor | None:
    """Which steps of an output (N, T, ..., n) are real, (N, T), where the model's last layer tells; else None."""
    lengths = noted_lengths(output)
    return None if lengths is None or output.dim() < 3 else real_steps(lengths, output.shape[1])


def _without_padding(
    weight: torch.Tensor | None, real: torch.Tensor | None, *, mean: bool = False
) -> torch.Tensor | None:
    """The weights of samples or steps with 0 for padded steps, as in Keras. mean: real steps then weigh more, so that a
    mean over all steps is one over the real ones."""
    if real is None:
        return weight
    shares = real.to(torch.float32)
    if mean:
        shares = shares * (real.numel() / real.sum().clamp(min=1))
    if weight is None:
        return shares
    return weight * shares if weight.dim() > 1 else weight[:, None] * shares


def _forget_gradients(optimizer: torch.optim.Optimizer) -> None:
    """optimizer.zero_grad(), without the profiler's entry that torch's own makes: as much time as a small layer."""
    if type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def raise_not_finite(loss: float, where: str) -> None:
    """Raises FloatingPointError with what to look for."""
    raise FloatingPointError(
        f"{where}: the loss must be finite, got {loss}; look for NaN in x, or lower the learning rate"
    )
