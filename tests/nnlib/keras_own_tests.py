"""Keras' own layer tests, run on the layers of this library.

They are imported from the installed Keras (keras/src/layers/**/*_test.py), not copied. In a test module the names
`layers`, `initializers`, `regularizers` and `constraints` are made to mean this library's; what is left of the adapter
is how Keras names weights (`layer.kernel`, `get_weights()`), and `dtype="float32"`, which layers here are anyway.
"""

from __future__ import annotations

import importlib
import sys
import types
import unittest
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from nnlib import constraints, initializers, layers, models, regularizers
from nnlib.convert.keras_weights import keras_weights, set_keras_weights

# Which of the arrays of get_weights() a name in Keras stands for.
_WEIGHTS = {
    "kernel": 0, "embeddings": 0, "depthwise_kernel": 0, "pointwise_kernel": 1,
    "gamma": 0, "beta": 1, "moving_mean": 2, "moving_variance": 3,
}  # fmt: skip


#: The methods that are run: test module -> CLASS.METHOD -> how many cases it is parametrized into (None: it is not).
#: Left out are those of what this library does not have (3D convolutions, quantization, LoRA, symbolic inputs)
#: and those that look at Keras' own messages, files and attributes.
METHODS: dict[str, dict[str, int | None]] = {
    "rnn.lstm": {
        "LSTMTest.test_correctness": 2,
        "LSTMTest.test_masking": None,
        "LSTMTest.test_pass_initial_state": None,
        "LSTMTest.test_statefulness": None,
    },
    "rnn.gru": {
        "GRUTest.test_correctness": 2,
        "GRUTest.test_masking": None,
        "GRUTest.test_pass_initial_state": None,
        "GRUTest.test_pass_return_state": None,
        "GRUTest.test_statefulness": None,
    },
    "rnn.simple_rnn": {
        "SimpleRNNTest.test_correctness": None,
        "SimpleRNNTest.test_masking": None,
        "SimpleRNNTest.test_pass_initial_state": None,
        "SimpleRNNTest.test_statefulness": None,
    },
    "rnn.bidirectional": {
        "SimpleRNNTest.test_correctness": None,
        "SimpleRNNTest.test_masking": None,
        "SimpleRNNTest.test_pass_initial_state": None,
        "SimpleRNNTest.test_return_state": None,
        "SimpleRNNTest.test_statefulness": None,
    },
    "convolutional.conv": {
        "ConvCorrectnessTest.test_conv1d": 5,
        "ConvCorrectnessTest.test_conv2d": 6,
        "ConvCorrectnessTest.test_conv_raises_exception_on_zero_dims": None,
    },
    "convolutional.conv_transpose": {"ConvTransposeCorrectnessTest.test_conv2d_transpose": 4},
    "convolutional.depthwise_conv": {"DepthwiseConvCorrectnessTest.test_depthwise_conv2d": 3},
    "convolutional.separable_conv": {"SeparableConvCorrectnessTest.test_separable_conv2d": 3},
    "pooling.max_pooling": {
        "MaxPoolingCorrectnessTest.test_max_pooling1d": 6,
        "MaxPoolingCorrectnessTest.test_max_pooling2d": 5,
    },
    "pooling.average_pooling": {
        "AveragePoolingCorrectnessTest.test_average_pooling1d": 4,
        "AveragePoolingCorrectnessTest.test_average_pooling1d_same_padding": 4,
        "AveragePoolingCorrectnessTest.test_average_pooling2d": 2,
        "AveragePoolingCorrectnessTest.test_average_pooling2d_same_padding": 4,
    },
    "pooling.global_average_pooling": {
        "GlobalAveragePoolingCorrectnessTest.test_global_average_pooling1d": 4,
        "GlobalAveragePoolingCorrectnessTest.test_global_average_pooling2d": 4,
    },
    "pooling.global_max_pooling": {
        "GlobalMaxPoolingCorrectnessTest.test_global_max_pooling1d": 4,
        "GlobalMaxPoolingCorrectnessTest.test_global_max_pooling2d": 4,
    },
    "core.dense": {
        "DenseTest.test_dense_correctness": None,
        "DenseTest.test_dense_no_activation": None,
        "DenseTest.test_dense_with_activation": None,
    },
    "core.embedding": {
        "EmbeddingTest.test_correctness": None,
        "EmbeddingTest.test_embedding_constraints": None,
    },
    "normalization.layer_normalization": {
        "LayerNormalizationTest.test_correctness": None,
        "LayerNormalizationTest.test_output": None,
        "LayerNormalizationTest.test_unsorted_axis": None,
    },
    "normalization.rms_normalization": {
        "RMSNormalizationTest.test_correctness": None,
        "RMSNormalizationTest.test_output": None,
        "RMSNormalizationTest.test_unsorted_axis": None,
    },
    "normalization.batch_normalization": {
        "BatchNormalizationTest.test_correctness": 16,
        "BatchNormalizationTest.test_input_fully_masked": 1,
        "BatchNormalizationTest.test_masked_broadcast_normalization": None,
    },
    "attention.multi_head_attention": {
        "MultiHeadAttentionTest.test_causal_only_fast_path": None,
        "MultiHeadAttentionTest.test_causal_only_masks_when_fused_path_disabled_dropout_and_scores": None,
        "MultiHeadAttentionTest.test_causal_only_masks_when_fused_path_disabled_dropout_only": None,
        "MultiHeadAttentionTest.test_causal_only_masks_when_fused_path_disabled_scores_only": None,
        "MultiHeadAttentionTest.test_compute_output_shape_with_key_same_proj": None,
        "MultiHeadAttentionTest.test_compute_output_shape_without_key_same_proj": None,
        "MultiHeadAttentionTest.test_multi_head_attention_output_shape_as_int": None,
        "MultiHeadAttentionTest.test_masking_causal": None,
        "MultiHeadAttentionTest.test_masking_not_causal": None,
        "MultiHeadAttentionTest.test_masking_with_different_shapes": None,
        "MultiHeadAttentionTest.test_no_warning_with_keras_mask": None,
    },
    "activations.relu": {
        "ReLUTest.test_compute_output_shape": None,
        "ReLUTest.test_default_relu_no_args": None,
        "ReLUTest.test_get_config": None,
        "ReLUTest.test_get_config_default_params": None,
        "ReLUTest.test_leaky_relu_correctness": None,
        "ReLUTest.test_normal_relu_correctness": None,
        "ReLUTest.test_relu_all_zeros_input": None,
        "ReLUTest.test_relu_multidimensional_input": None,
        "ReLUTest.test_relu_none_max_value_is_unlimited": None,
        "ReLUTest.test_threshold_relu_correctness": None,
    },
    "activations.softmax": {
        "SoftmaxTest.test_softmax_correctness": None,
        "SoftmaxTest.test_softmax_correctness_with_axis": None,
        "SoftmaxTest.test_softmax_correctness_with_mask": None,
        "SoftmaxTest.test_softmax_mask_broadcastable": None,
        "SoftmaxTest.test_softmax_mask_broadcastable_fewer_dims": None,
        "SoftmaxTest.test_softmax_masked_values_are_zero_including_fully_masked": None,
    },
    "layer": {"LayerTest.test_end_to_end_masking": None},
    "reshaping.flatten": {"FlattenTest.test_flatten_with_dynamic_batch_size_and_dynamic_dimenstions": None},
    "reshaping.reshape": {
        "ReshapeTest.test_reshape_layer_with_varying_input_size_and_minus_one": None,
        "ReshapeTest.test_reshape_with_dynamic_batch_size_and_minus_one": None,
        "ReshapeTest.test_reshape_with_dynamic_dim_and_minus_one": None,
    },
    "reshaping.zero_padding2d": {
        "ZeroPadding2DTest.test_zero_padding_2d": 2,
        "ZeroPadding2DTest.test_zero_padding_2d_with_same_padding": 6,
    },
}


def cases() -> list[tuple[str, str]]:
    """(test module, CLASS.METHOD) of each single case in METHODS."""
    found = []
    for name, tests in METHODS.items():
        for test, count in tests.items():
            found += [(name, test)] if count is None else [(name, f"{test}{number}") for number in range(count)]
    return found


class _Weight:
    """One weight of a layer as a keras.Variable: shape, assign, constraint, and its values as an array."""

    def __init__(self, layer: layers.Layer, name: str, position: int) -> None:
        self.layer = layer
        self.name = name
        self.position = position

    def numpy(self) -> np.ndarray:
        return keras_weights(self.layer)[self.position]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.numpy(), dtype=dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numpy().shape

    @property
    def constraint(self) -> Any:
        return getattr(self.layer, f"{self.name}_constraint")

    def assign(self, values: Any) -> None:
        arrays = keras_weights(self.layer)
        arrays[self.position] = np.asarray(values)
        set_keras_weights(self.layer, arrays)


def _named(name: str, position: int) -> property:
    return property(lambda layer: _Weight(layer, name, position))


def _recorded(kind: type, made: list[Any]) -> Callable[..., Any]:
    """What makes a layer of this kind, and notes it in `made`."""

    def make(*arguments: Any, dtype: str | None = None, **options: Any) -> Any:
        if dtype not in (None, "float32"):
            raise TypeError(f"dtype: float32 is expected, got {dtype}")
        made.append(kind(*arguments, **options))
        return made[-1]

    return make


def _replacements(module: types.ModuleType, made: list[Any]) -> dict[str, Any]:
    """Names in a test module, and what of this library they are to mean. Layers that are made go to `made`."""
    ours: dict[str, Any] = {name: getattr(layers, name) for name in layers.__all__}
    ours = {name: _recorded(value, made) if isinstance(value, type) else value for name, value in ours.items()}
    rooms: dict[str, Any] = {
        "initializers": initializers,
        "regularizers": regularizers,
        "constraints": constraints,
        "models": models,
    }
    found = {}
    for name, value in vars(module).items():
        if isinstance(value, types.ModuleType) and value.__name__.startswith("keras.src.layers"):
            found[name] = types.SimpleNamespace(**ours)
        elif isinstance(value, types.ModuleType) and value.__name__.startswith("keras.src") and name in rooms:
            found[name] = rooms[name]
        elif isinstance(value, type) and name in ours:
            found[name] = ours[name]
    return found


@contextmanager
def keras_names() -> Iterator[None]:
    """Within the block layers have Keras' names for what they have under torch's."""
    with ExitStack() as stack:
        for name, position in _WEIGHTS.items():
            stack.enter_context(mock.patch.object(layers.Layer, name, _named(name, position), create=True))
        stack.enter_context(mock.patch.object(layers.SeparableConv2D, "bias", _named("bias", 2), create=True))
        stack.enter_context(mock.patch.object(torch.nn.Parameter, "assign", _assign, create=True))
        yield


@torch.no_grad()
def _assign(parameter: torch.nn.Parameter, values: Any) -> None:
    parameter.copy_(torch.as_tensor(np.asarray(values)))


def load(name: str) -> types.ModuleType:
    """Keras' test module keras.src.layers.NAME_test, with this library's layers in it."""
    stand_in = types.ModuleType("conftest")
    stand_in.skip_if_backend = lambda *_: lambda test: test  # type: ignore[attr-defined]
    before = sys.modules.get("conftest")
    sys.modules["conftest"] = stand_in
    try:
        # Keras marks tests with marks of its own, which this project's settings do not know.
        with mock.patch.object(pytest, "mark", pytest.MarkGenerator(_ispytest=True)):
            return importlib.import_module(f"keras.src.layers.{name}_test")
    finally:
        del sys.modules["conftest"]
        if before is not None:
            sys.modules["conftest"] = before


def run(name: str, test: str) -> tuple[unittest.TestResult, list[Any]]:
    """Runs one method, CLASS.METHOD, of a test module. Returns its result, and the layers that it made."""
    module = load(name)
    kind, method = test.split(".")
    result = unittest.TestResult()
    made: list[Any] = []
    with mock.patch.dict(vars(module), _replacements(module, made)), keras_names():
        getattr(module, kind)(method).run(result)
    return result, made
