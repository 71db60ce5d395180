"""BatchNormalization. kernels has no op for it: it is torch's own, whatever the backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from typing_extensions import Unpack

from nnlib.initializers import InitializerChoice, fill
from nnlib.layers.base import Layer, Shape
from nnlib.layers.options import NormOptions
from nnlib.layers.padding import checked_mask, real_steps
from nnlib.layers.rules import unchanged


class BatchNormalization(Layer):
    """Each channel less its mean, by its standard deviation (Ioffe and Szegedy, 2015), keras.layers.BatchNormalization.

    Input of two or more axes, floating point; output the same shape. In training the statistics are the batch's, and
    the moving ones follow them (the variance with divisor N, as in Keras); in evaluation they are the moving ones.
    The parameters: weight (gamma) and bias (beta) (C,); the statistics are buffers, running_mean and running_var.

    axis: the channels' (default the last). momentum: share of the old moving statistics that stays.
    epsilon: is added to the variance. center: whether there is a bias; scale: whether there is a weight.
    beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer: see nnlib.initializers;
    beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint, and the other options: see Layer.
    synchronized: False; over several processes, torch.nn.SyncBatchNorm in a model of torch's does what True would.
    Call: layer(x, mask=None, lengths=None). mask: bool, or 1 and 0, of a shape that broadcasts to the input's without
    its last axis; lengths (N,), for input (N, T, ..., C): padded steps count for nothing, and are normalized as zeros.

    Raises ValueError if an argument is out of its range, or an input does not fit.
    """

    keeps_shape = True
    takes_lengths = True
    keeps_lengths = True
    regularized = constrained = ("beta", "gamma")

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 0.001,
        center: bool = True,
        scale: bool = True,
        beta_initializer: InitializerChoice = "zeros",
        gamma_initializer: InitializerChoice = "ones",
        moving_mean_initializer: InitializerChoice = "zeros",
        moving_variance_initializer: InitializerChoice = "ones",
        *,
        synchronized: bool = False,
        **options: Unpack[NormOptions],
    ) -> None:
        super().__init__(**options)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: a number in [0, 1] is expected, got {momentum}")
        if not epsilon > 0:
            raise ValueError(f"epsilon: a positive number is expected, got {epsilon}")
        if synchronized:
            raise ValueError(f"synchronized: False is expected, statistics are of one process, got {synchronized}")
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = beta_initializer
        self.gamma_initializer = gamma_initializer
        self.moving_mean_initializer = moving_mean_initializer
        self.moving_variance_initializer = moving_variance_initializer
        self.channels: int | None = None

    def _channel_axis(self, shape: Sequence[int | None]) -> int:
        axis = self.axis + len(shape) if self.axis < 0 else self.axis
        if not 1 <= axis < len(shape):
            raise ValueError(f"{self.name}: axis {self.axis} must be one of the input's but the batch, got {shape}")
        return axis

    def check_input_shape(self, shape: Shape) -> None:
        super().check_input_shape(shape)
        axis = self._channel_axis(shape)
        if self.channels is not None and shape[axis] not in (self.channels, None):
            raise ValueError(f"{self.name}: input must have {self.channels} channels in axis {axis}, got {shape}")

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[self._channel_axis(input_shape)]
        if channels is None:
            raise ValueError(f"{self.name}: input channels must be known, got {input_shape}")
        for name, wanted, choice, argument in (
            ("weight", self.scale, self.gamma_initializer, "gamma_initializer"),
            ("bias", self.center, self.beta_initializer, "beta_initializer"),
        ):
            if wanted:
                self.add_parameter(name, (channels,), choice, argument)
            else:
                self.register_parameter(name, None)
        for name, choice, argument in (
            ("running_mean", self.moving_mean_initializer, "moving_mean_initializer"),
            ("running_var", self.moving_variance_initializer, "moving_variance_initializer"),
        ):
            statistic = torch.empty(channels, device=self.device)
            fill(f"{self.name}: {argument}", choice, statistic, unchanged)
            self.register_buffer(name, statistic)
        self.channels = channels

    def call(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, *, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        axis = self._channel_axis(tuple(x.shape))
        if mask is not None:
            if lengths is not None:
                raise ValueError(f"{self.name}: lengths or mask must be given, got both")
            whole = tuple(x.shape[:-1])
            sizes = zip(mask.shape, whole) if mask.dim() == len(whole) else ()
            shape = tuple(size if size == 1 else full for size, full in sizes) or whole
            return self._normalize_real(x, axis, checked_mask(self.name, mask, shape))
        if lengths is None and axis == x.dim() - 1 != 3:
            return self._normalize(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        if lengths is None:
            return self._normalize(x.movedim(axis, 1)).movedim(1, axis)  # of images torch has a channels-last kernel
        if x.dim() < 3:
            raise ValueError(f"{self.name}: lengths need an input (N, T, ..., C), got {tuple(x.shape)}")
        real = real_steps(lengths, x.shape[1])
        return self._normalize_real(x, axis, real.view(*real.shape, *[1] * (x.dim() - 3)))

    def _normalize_real(self, x: torch.Tensor, axis: int, real: torch.Tensor) -> torch.Tensor:
        """x with 0 in padded steps, normalized by the statistics of the others. real: broadcasts to x without its last
        axis."""
        counts = real[..., None].to(x.dtype).expand(x.shape).movedim(axis, 1)
        x = x.masked_fill(~real[..., None], 0).movedim(axis, 1)
        if not (self.training and self.trainable):
            return self._normalize(x).movedim(1, axis)
        others = [0, *range(2, x.dim())]
        count = counts.sum(others, keepdim=True).clamp(min=1)
        mean = x.sum(others, keepdim=True) / count
        variance = ((x - mean) * counts).square().sum(others, keepdim=True) / count
        self._follow(mean.flatten(), variance.flatten())
        y = (x - mean) * (variance + self.epsilon).rsqrt()
        shape = [-1, *[1] * (x.dim() - 2)]
        y = y if self.weight is None else y * self.weight.view(shape)
        y = y if self.bias is None else y + self.bias.view(shape)
        return y.movedim(1, axis)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Has the moving statistics follow the batch's."""
        self.running_mean.lerp_(mean, 1 - self.momentum)
        self.running_var.lerp_(variance, 1 - self.momentum)

    def _normalize(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, C, ...) normalized; in training, unless frozen, the moving statistics go on."""
        weight, bias, epsilon = self.weight, self.bias, self.epsilon
        if not (self.training and self.trainable):
            return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, False, 0.0, epsilon)
        count = x.numel() // x.shape[1]
        if count == 0:
            return x
        if count == 1:  # nothing but its own mean, which torch refuses
            mean, variance = x.detach().flatten(), torch.zeros_like(self.running_var)
            y = F.batch_norm(x - x, variance, torch.ones_like(variance), weight, bias, False, 0.0, epsilon)
        else:
            # With momentum 1 torch leaves the batch's own statistics here, the variance with divisor count - 1.
            # Zeros, since torch multiplies what was there by 0, and memory as it comes may hold a NaN.
            mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
            y = F.batch_norm(x, mean, variance, weight, bias, True, 1.0, epsilon)
            variance = variance * ((count - 1) / count)
        self._follow(mean, variance)
        return y
