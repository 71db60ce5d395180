"""The keyword arguments that layers have in common, for type checkers. What they do is said in Layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch

from nnlib.constraints import ConstraintChoice
from nnlib.regularizers import RegularizerChoice


class LayerOptions(TypedDict, total=False):
    """Of every layer."""

    input_shape: Sequence[int | None] | None
    dtype: torch.dtype | str | None
    activity_regularizer: RegularizerChoice
    trainable: bool
    device: torch.device | str | None
    backend: str | None
    name: str | None


class KernelOptions(LayerOptions, total=False):
    """Of layers with a kernel and a bias."""

    input_dim: int | None
    kernel_regularizer: RegularizerChoice
    bias_regularizer: RegularizerChoice
    kernel_constraint: ConstraintChoice
    bias_constraint: ConstraintChoice


class DepthwiseOptions(LayerOptions, total=False):
    """Of depthwise convolutions."""

    depthwise_regularizer: RegularizerChoice
    bias_regularizer: RegularizerChoice
    depthwise_constraint: ConstraintChoice
    bias_constraint: ConstraintChoice


class SeparableOptions(DepthwiseOptions, total=False):
    """Of separable convolutions."""

    pointwise_regularizer: RegularizerChoice
    pointwise_constraint: ConstraintChoice


class NormOptions(LayerOptions, total=False):
    """Of normalizations."""

    beta_regularizer: RegularizerChoice
    gamma_regularizer: RegularizerChoice
    beta_constraint: ConstraintChoice
    gamma_constraint: ConstraintChoice


class EmbeddingOptions(LayerOptions, total=False):
    """Of embeddings."""

    embeddings_regularizer: RegularizerChoice
    embeddings_constraint: ConstraintChoice


class RecurrentOptions(KernelOptions, total=False):
    """Of recurrent layers; what they do is said there."""

    recurrent_regularizer: RegularizerChoice
    recurrent_constraint: ConstraintChoice
    dropout: float
    recurrent_dropout: float
    return_sequences: bool
    return_state: bool
    go_backwards: bool
    stateful: bool
    unroll: bool
    zero_output_for_mask: bool
    implementation: int
    use_cudnn: bool | str
