"""Keras 3 models and layers to this library's and back, with their weights. Keras is imported on use."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from nnlib import constraints, layers, regularizers
from nnlib.activations import ACTIVATIONS
from nnlib.convert.keras_weights import keras_weights, set_keras_weights
from nnlib.layers.base import Layer
from nnlib.layers.rules import rule_names
from nnlib.models.sequential import Sequential
from nnlib.names import look_up

_IMAGE = ("kernel_size", "strides", "padding", "data_format")
_RECURRENT = (
    "units", "activation", "use_bias", "dropout", "recurrent_dropout", "return_sequences", "return_state",
    "go_backwards", "stateful", "unroll", "zero_output_for_mask",
)  # fmt: skip
_POOLING = ("pool_size", "strides", "padding", "data_format")

#: What makes a layer: arguments that have the same name and meaning in Keras' config, here and as our attributes.
_ARGUMENTS: dict[type[Layer], tuple[str, ...]] = {
    layers.Activation: ("activation",),
    layers.AveragePooling1D: _POOLING,
    layers.AveragePooling2D: _POOLING,
    layers.BatchNormalization: ("axis", "momentum", "epsilon", "center", "scale"),
    layers.Conv1D: ("filters", *_IMAGE, "dilation_rate", "groups", "activation", "use_bias"),
    layers.Conv2D: ("filters", *_IMAGE, "dilation_rate", "groups", "activation", "use_bias"),
    layers.Conv2DTranspose: ("filters", *_IMAGE, "output_padding", "dilation_rate", "activation", "use_bias"),
    layers.Dense: ("units", "activation", "use_bias"),
    layers.DepthwiseConv2D: (*_IMAGE, "depth_multiplier", "dilation_rate", "activation", "use_bias"),
    layers.Dropout: ("rate", "noise_shape", "seed"),
    layers.Embedding: ("input_dim", "output_dim", "mask_zero"),
    layers.Flatten: ("data_format",),
    layers.GRU: (*_RECURRENT, "recurrent_activation", "reset_after"),
    layers.GlobalAveragePooling1D: ("data_format", "keepdims"),
    layers.GlobalAveragePooling2D: ("data_format", "keepdims"),
    layers.GlobalMaxPooling1D: ("data_format", "keepdims"),
    layers.GlobalMaxPooling2D: ("data_format", "keepdims"),
    layers.LSTM: (*_RECURRENT, "recurrent_activation"),
    layers.LayerNormalization: ("axis", "epsilon", "center", "scale"),
    layers.Masking: ("mask_value",),
    layers.MaxPooling1D: _POOLING,
    layers.MaxPooling2D: _POOLING,
    layers.MultiHeadAttention: ("num_heads", "key_dim", "value_dim", "dropout", "use_bias"),
    layers.ReLU: ("max_value", "negative_slope", "threshold"),
    layers.RMSNormalization: ("axis", "epsilon"),
    layers.Reshape: ("target_shape",),
    layers.SeparableConv2D: ("filters", *_IMAGE, "depth_multiplier", "dilation_rate", "activation", "use_bias"),
    layers.SimpleRNN: _RECURRENT,
    layers.Softmax: ("axis",),
    layers.ZeroPadding2D: ("padding", "data_format"),
}
_BY_NAME = {kind.__name__: kind for kind in _ARGUMENTS}
# In Keras' configs, without effect on what a layer computes once it has its weights.
_IGNORED = frozenset(
    {
        "name", "trainable", "dtype", "seed", "batch_shape", "build_config", "implementation", "use_cudnn",
        "unit_forget_bias", "flash_attention", "sparse", "ragged", "optional", "time_major", "renorm_clipping",
        "renorm_momentum",
    }
)  # fmt: skip
# What arguments that we do not have may be besides None and False.
_ALLOWED: dict[str, Any] = {"attention_axes": (1,)}


def from_keras(model: Any) -> Any:
    """A built Keras 3 Sequential or layer as one of this library, with copies of its weights.

    Keras' names of layers are kept; the layers compute what Keras' do, in the same data_format, have the same
    regularizers and constraints, and are frozen where Keras' are. Initialisers and seeds are not carried over.

    Raises TypeError for a kind of model or layer that has no counterpart; ValueError naming the layer for one that is
    not built, or an argument that cannot be carried over.
    """
    keras = _import_keras()
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError(f"{model.name}: the model must be built to have weights, got one that is not")
        made = Sequential(name=_name(model))
        shape = tuple(model.input_shape)
        for keras_layer in model.layers:
            layer = _empty_from_keras(keras_layer)
            made.add(layer)
        made.build(shape)
        for layer, keras_layer in zip(made.layers, model.layers):
            _copy_weights(layer, keras_layer)
            layer.trainable = keras_layer.trainable
        return made
    if not isinstance(model, keras.layers.Layer) or isinstance(model, keras.Model):
        raise TypeError(f"model: a keras.Sequential or a layer of Keras is expected, got a {type(model).__name__}")
    layer = _empty_from_keras(model)
    if not model.built:
        raise ValueError(f"{model.name}: the layer must be built to have weights, got one that is not")
    _build_like(layer, model)
    _copy_weights(layer, model)
    layer.trainable = model.trainable
    return layer


def to_keras(model: Sequential | Layer) -> Any:
    """A built Sequential or layer as Keras 3's, with copies of its weights: the reverse of `from_keras`.

    Raises TypeError for a layer that Keras does not have; ValueError for a model that is not built, or an activation,
    regularizer or constraint that is a function.
    """
    keras = _import_keras()
    if isinstance(model, Sequential):
        if not model.built or model.input_shape is None:
            raise ValueError(f"{model.name}: the model must be built to have weights, got one that is not")
        tokens = isinstance(model.layers[0], layers.Embedding)
        first = keras.Input(model.input_shape[1:], dtype="int32" if tokens else None)
        made = keras.Sequential([first, *map(_empty_to_keras, model.layers)], name=model.name)
        for keras_layer, layer in zip(made.layers, model.layers):
            keras_layer.set_weights(keras_weights(layer))
            keras_layer.trainable = layer.trainable
        return made
    if not isinstance(model, Layer):
        raise TypeError(f"model: a Sequential or a layer of nnlib is expected, got a {type(model).__name__}")
    made = _empty_to_keras(model)
    if model.built_input_shape is None:
        raise ValueError(f"{model.name}: the layer must be built to have weights, got one that is not")
    if isinstance(model, layers.MultiHeadAttention):
        assert model.features is not None
        query, key, value = ((None, None, size) for size in model.features)
        made.build(query, value, key)
    else:
        made.build(model.built_input_shape)
    made.set_weights(keras_weights(model))
    made.trainable = model.trainable
    return made


def _import_keras() -> Any:
    try:
        import keras
    except ModuleNotFoundError as error:
        if error.name != "keras":
            raise
        raise ImportError("Keras is needed for this: pip install nnlib-kernels[keras]") from error
    return keras


def _name(made: Any) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in made.name)


# ----- from Keras --------------------------------------------------------------------------------------------------


def _empty_from_keras(keras_layer: Any) -> Layer:
    """Our layer of the same kind and arguments, not built."""
    kind, config, name = type(keras_layer).__name__, keras_layer.get_config(), _name(keras_layer)
    special = _SPECIAL.get(kind)
    if special is not None:
        return special(keras_layer, config, name)
    ours = _BY_NAME.get(kind)
    if ours is None:
        known = ", ".join([*_BY_NAME, *_SPECIAL])
        raise TypeError(f"{keras_layer.name}: layers that convert are {known}; got a {kind}")
    for key in ("activation", "recurrent_activation"):
        if isinstance(config.get(key), str):
            look_up(f"{keras_layer.name}: {key}", config[key], ACTIVATIONS)
    rules = [name for name in rule_names(ours) if config.get(name) is not None]
    _check_the_rest(keras_layer, config, (*_ARGUMENTS[ours], *rules))
    arguments = {key: _plain(keras_layer, key, config[key]) for key in _ARGUMENTS[ours] if key in config}
    if kind == "MultiHeadAttention" and config.get("output_shape") is not None:
        arguments["output_shape"] = config["output_shape"]
    arguments |= {rule: _rule_from_keras(keras_layer, rule, config[rule]) for rule in rules}
    return ours(**arguments, name=name)


def _rule_from_keras(keras_layer: Any, argument: str, value: Any) -> Any:
    """A regularizer or constraint of ours from one in a Keras config."""
    kind, room = (value.get("class_name"), _room(argument)) if isinstance(value, dict) else (value, None)
    ours = getattr(room, str(kind), None)
    if not isinstance(ours, type):
        raise ValueError(f"{keras_layer.name}: {argument} does not convert, got {kind!r}")
    return ours(**value["config"])


def _rule_to_keras(layer: Layer, argument: str, value: Any) -> Any:
    room = _room(argument)
    if getattr(room, type(value).__name__, None) is not type(value):
        raise ValueError(f"{layer.name}: {argument} does not convert, got {value!r}")
    theirs = getattr(_import_keras(), room.__name__.rpartition(".")[2])
    return getattr(theirs, type(value).__name__)(**value.get_config())


def _room(argument: str) -> ModuleType:
    return constraints if argument.endswith("_constraint") else regularizers


def _plain(keras_layer: Any, key: str, value: Any) -> Any:
    if key == "activation" and isinstance(value, dict):
        raise ValueError(f"{keras_layer.name}: activation: a name is expected, got {value.get('class_name')}")
    return value


def _check_the_rest(keras_layer: Any, config: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raises ValueError for an argument that we do not have and that is not at its default."""
    for key, value in config.items():
        if key in known or key in _IGNORED or key.endswith("_initializer") or key == "output_shape":
            continue
        value = tuple(value) if isinstance(value, list) else value
        if value not in (None, False, _ALLOWED.get(key)):
            raise ValueError(f"{keras_layer.name}: {key} does not convert, got {value!r}")


def _bidirectional(keras_layer: Any, config: dict[str, Any], name: str) -> Layer:
    forward: Any = _empty_from_keras(keras_layer.forward_layer)
    backward: Any = _empty_from_keras(keras_layer.backward_layer)
    return layers.Bidirectional(forward, config["merge_mode"], backward_layer=backward, name=name)


_SPECIAL: dict[str, Callable[[Any, dict[str, Any], str], Layer]] = {
    "Bidirectional": _bidirectional,
}


def _build_like(layer: Layer, keras_layer: Any) -> None:
    shapes = keras_layer.get_build_config() or {}
    if isinstance(layer, layers.MultiHeadAttention):
        found = shapes.get("shapes_dict", shapes)
        query, value = tuple(found["query_shape"]), tuple(found["value_shape"])
        key = tuple(found.get("key_shape") or value)
        layer.build_for(query, key, value)
        layer.built, layer.built_input_shape = True, (None, *query[1:])
        return
    shape = shapes.get("input_shape")
    if shape is None and not keras_layer.weights:
        return  # Keras does not note the shape of some layers without weights: the first call builds them
    if shape is None:
        raise ValueError(f"{keras_layer.name}: Keras does not tell what input the layer was built for")
    layer.build_once(tuple(shape))


def _copy_weights(layer: Layer, keras_layer: Any) -> None:
    if keras_layer.weights:
        set_keras_weights(layer, [np.asarray(array) for array in keras_layer.get_weights()])


# ----- to Keras ----------------------------------------------------------------------------------------------------


def _empty_to_keras(layer: Layer) -> Any:
    keras = _import_keras()
    if isinstance(layer, layers.Bidirectional):
        one, other = _empty_to_keras(layer.forward_layer), _empty_to_keras(layer.backward_layer)
        return keras.layers.Bidirectional(one, merge_mode=layer.merge_mode, backward_layer=other, name=layer.name)
    names = _ARGUMENTS.get(type(layer))
    if names is None:
        known = ", ".join(kind.__name__ for kind in (*_ARGUMENTS, layers.Bidirectional))
        raise TypeError(f"{layer.name}: layers that convert are {known}; got a {type(layer).__name__}")
    arguments = {name: _own_argument(layer, name) for name in names}
    if isinstance(layer, layers.MultiHeadAttention):
        if layer.relative is not None:
            raise ValueError(f"{layer.name}: relative does not convert, got {layer.relative!r}")
        arguments["output_shape"] = layer.output_features
    for name in rule_names(type(layer)):
        if getattr(layer, name) is not None:
            arguments[name] = _rule_to_keras(layer, name, getattr(layer, name))
    made = getattr(keras.layers, type(layer).__name__)(**arguments, name=layer.name)
    # Keras' SimpleRNN (3.15) takes the argument and forgets it.
    made.activity_regularizer = arguments.get("activity_regularizer")
    return made


def _own_argument(layer: Layer, name: str) -> Any:
    if isinstance(layer, layers.SeparableConv2D):
        inside = layer.pointwise if name in ("filters", "activation", "use_bias", "data_format") else layer.depthwise
        return _own_argument(inside, name)
    value = getattr(layer, name)
    if name == "activation" and not isinstance(value, (str, type(None))):
        if value.is_function:
            raise ValueError(f"{layer.name}: activation: a name is expected, got the function {value.name}")
        return value.name
    return value
