"""The weights of each layer in Keras 3's layout and order, and back. NumPy arrays; Keras itself is not needed.

Keras has features last where this library and torch have them first: a kernel is (in, out), an image's (height, width,
in, out), and gates lie in the order of kernels.recurrence.gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from kernels.recurrence import gates
from nnlib import layers
from nnlib.layers.base import Layer

Array = np.ndarray[Any, Any]
#: A layer's own weights by name, from a list in Keras' order and the other way.
_To = Callable[[Any], list[Array]]
_From = Callable[[Any, list[Array]], dict[str, Array]]


def keras_weights(layer: Layer) -> list[Array]:
    """What get_weights() of the Keras layer of the same name would give: copies, in its layout and order.

    Raises TypeError for a layer that has no Keras counterpart, ValueError for one that is not built.
    """
    if not layer.built:
        raise ValueError(f"{layer.name}: the layer must be built to have weights, got one that is not")
    return [np.array(array, order="C") for array in _layout(layer)[0](layer)]


def set_keras_weights(layer: Layer, arrays: Sequence[Array]) -> None:
    """Copies arrays in the layout and order of the Keras layer's get_weights() into a built layer.

    Raises ValueError naming the layer where their number or a shape does not fit.
    """
    expected = [array.shape for array in keras_weights(layer)]
    given = [np.asarray(array) for array in arrays]
    if [array.shape for array in given] != expected:
        raise ValueError(
            f"{layer.name}: Keras' weights must have shapes {expected}, got {[array.shape for array in given]}"
        )
    found = _layout(layer)[1](layer, given)
    with torch.no_grad():
        for name, array in found.items():
            target = layer.get_parameter(name) if name in dict(layer.named_parameters()) else layer.get_buffer(name)
            target.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def _parts(module: torch.nn.Module) -> Iterator[Layer | torch.Tensor]:
    """What a module's weights are made of, in order: layers that Keras has too, and tensors of others."""
    if isinstance(module, Layer) and any(kind in _LAYOUTS for kind in type(module).__mro__):
        if module.built:
            yield module
        return
    kept = module.state_dict(keep_vars=True)
    yield from (tensor for name, tensor in kept.items() if "." not in name)
    for child in module.children():
        yield from _parts(child)


def all_weights(module: torch.nn.Module) -> list[Array]:
    """The weights of a layer, or of a model layer by layer; see keras_weights. Those of modules that Keras does not
    have are as they are here."""
    found: list[Array] = []
    for part in _parts(module):
        found += [_numpy(part).copy()] if isinstance(part, torch.Tensor) else keras_weights(part)
    return found


def set_all_weights(module: torch.nn.Module, arrays: Sequence[Array]) -> None:
    """The reverse of all_weights. Raises ValueError, before any is changed, where their number or a shape does not
    fit."""
    name = getattr(module, "name", type(module).__name__)
    expected = [array.shape for array in all_weights(module)]
    given = [np.asarray(array) for array in arrays]
    if len(given) != len(expected):
        raise ValueError(f"{name}: set_weights needs {len(expected)} arrays, got {len(given)}")
    for number, (array, shape) in enumerate(zip(given, expected)):
        if array.shape != shape:
            raise ValueError(f"{name}: weight {number} must have shape {shape}, got {array.shape}")
    rest = iter(given)
    for part in _parts(module):
        if isinstance(part, torch.Tensor):
            with torch.no_grad():
                part.copy_(torch.from_numpy(np.ascontiguousarray(next(rest))))
        else:
            set_keras_weights(part, [next(rest) for _ in keras_weights(part)])


def _numpy(tensor: torch.Tensor) -> Array:
    return tensor.detach().cpu().numpy()


def _with_bias(turn: Callable[[Array], Array], back: Callable[[Array], Array]) -> tuple[_To, _From]:
    """A weight that `turn` brings into Keras' layout and `back` out of it, and a bias where there is one."""

    def to(layer: Any) -> list[Array]:
        found = [turn(_numpy(layer.weight))]
        return found if layer.bias is None else [*found, _numpy(layer.bias)]

    def from_(layer: Any, arrays: list[Array]) -> dict[str, Array]:
        found = {"weight": back(arrays[0])}
        return found if layer.bias is None else {**found, "bias": arrays[1]}

    return to, from_


_CELLS = {"rnn_layer": "rnn", "lstm_layer": "lstm", "gru_layer": "gru"}


def _recurrent_to(layer: Any) -> list[Array]:
    given = [None if one is None else _numpy(one) for one in (layer.bias_ih, layer.bias_hh)]
    params = (_numpy(layer.weight_ih), _numpy(layer.weight_hh), given[0], given[1])
    found = gates.to_keras(_CELLS[layer.op], params, reset_after=layer.has_second_bias)
    return [array for array in found if array is not None]


def _recurrent_from(layer: Any, arrays: list[Array]) -> dict[str, Array]:
    found = zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), gates.from_keras(_CELLS[layer.op], *arrays))
    return {name: array for name, array in found if array is not None}


def _inside(names: Sequence[str]) -> tuple[_To, _From]:
    """A layer made of others, whose weights come one after the other."""

    def to(layer: Any) -> list[Array]:
        return [array for name in names for array in keras_weights(getattr(layer, name))]

    def from_(layer: Any, arrays: list[Array]) -> dict[str, Array]:
        rest = list(arrays)
        for name in names:
            inner = getattr(layer, name)
            count = len(keras_weights(inner))
            set_keras_weights(inner, rest[:count])
            rest = rest[count:]
        return {}

    return to, from_


def _by_name(*names: str) -> tuple[_To, _From]:
    """Weights that lie in Keras as they lie here; those that are None are left out."""

    def present(layer: Any) -> list[str]:
        return [name for name in names if getattr(layer, name) is not None]

    def to(layer: Any) -> list[Array]:
        return [_numpy(getattr(layer, name)) for name in present(layer)]

    return to, lambda layer, arrays: dict(zip(present(layer), arrays))


def _depthwise_to(layer: Any) -> list[Array]:
    """Keras' kernel is (height, width, channels, multiplier)."""
    weight = _numpy(layer.weight).reshape(layer.groups, layer.depth_multiplier, *layer.kernel_size)
    found = [weight.transpose(2, 3, 0, 1)]
    return found if layer.bias is None else [*found, _numpy(layer.bias)]


def _depthwise_from(layer: Any, arrays: list[Array]) -> dict[str, Array]:
    found = {"weight": arrays[0].transpose(2, 3, 0, 1).reshape(tuple(layer.weight.shape))}
    return found if layer.bias is None else {**found, "bias": arrays[1]}


def _attention_to(layer: Any) -> list[Array]:
    """Query, key, value and output; Keras' kernels are (features, heads, size) and (heads, size, features)."""
    heads = layer.num_heads
    sizes = (layer.key_dim, layer.key_dim, layer.value_dim)
    ends = np.cumsum([heads * size for size in sizes])[:2]
    if layer.in_proj_weight is None:
        weights = [_numpy(one) for one in (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)]
    else:
        weights = np.split(_numpy(layer.in_proj_weight), ends)
    biases = [None] * 3 if layer.in_proj_bias is None else np.split(_numpy(layer.in_proj_bias), ends)
    found: list[Array] = []
    for weight, bias, size in zip(weights, biases, sizes):
        found.append(weight.T.reshape(-1, heads, size))
        if bias is not None:
            found.append(bias.reshape(heads, size))
    found.append(_numpy(layer.out_proj.weight).T.reshape(heads, layer.value_dim, -1))
    return found if layer.out_proj.bias is None else [*found, _numpy(layer.out_proj.bias)]


def _attention_from(layer: Any, arrays: list[Array]) -> dict[str, Array]:
    step = 2 if layer.use_bias else 1
    rows = [array.reshape(len(array), -1).T for array in arrays[0 : 3 * step : step]]
    output = arrays[3 * step]
    found = {"out_proj.weight": output.reshape(-1, output.shape[-1]).T}
    if layer.in_proj_weight is None:
        found |= dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), rows))
    else:
        found["in_proj_weight"] = np.concatenate(rows)
    if layer.use_bias:
        found["in_proj_bias"] = np.concatenate([array.reshape(-1) for array in arrays[1 : 3 * step : step]])
        found["out_proj.bias"] = arrays[-1]
    return found


_RECURRENT: tuple[_To, _From] = (_recurrent_to, _recurrent_from)
_LAYOUTS: dict[type[Layer], tuple[_To, _From]] = {
    layers.Dense: _with_bias(lambda w: w.T, lambda w: w.T),
    layers.Conv1D: _with_bias(lambda w: w.transpose(2, 1, 0), lambda w: w.transpose(2, 1, 0)),
    layers.Conv2D: _with_bias(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1)),
    layers.Conv2DTranspose: _with_bias(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1)),
    layers.DepthwiseConv2D: (_depthwise_to, _depthwise_from),
    layers.SeparableConv2D: _inside(("depthwise", "pointwise")),
    layers.Embedding: _by_name("weight"),
    layers.LayerNormalization: _by_name("weight", "bias"),
    layers.RMSNormalization: _by_name("weight"),
    layers.MultiHeadAttention: (_attention_to, _attention_from),
    layers.BatchNormalization: _by_name("weight", "bias", "running_mean", "running_var"),
    layers.SimpleRNN: _RECURRENT,
    layers.LSTM: _RECURRENT,
    layers.GRU: _RECURRENT,
    layers.Dropout: (lambda _: [], lambda _, __: {}),  # how often it has drawn is no weight
    layers.Bidirectional: _inside(("forward_layer", "backward_layer")),
}


def _layout(layer: Layer) -> tuple[_To, _From]:
    for kind in type(layer).__mro__:
        if kind in _LAYOUTS:
            return _LAYOUTS[kind]
    if not layer.state_dict():
        return lambda _: [], lambda _, __: {}
    known = ", ".join(kind.__name__ for kind in _LAYOUTS if kind is not layers.Dropout)
    raise TypeError(f"{layer.name}: layers with Keras weights are {known}; got {type(layer).__name__}")
