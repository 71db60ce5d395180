"""One layer as torch modules, with copies of its weights: a function for each layer that has a counterpart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nnlib import layers
from nnlib.activations import ActivationChoice
from nnlib.convert.torch_modules import Permute, StepMean
from nnlib.layers.base import Layer
from nnlib.layers.recurrent_base import Recurrent

GLOBAL_POOLINGS = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)


def _refuse(layer: Layer, name: str, value: Any, why: str) -> ValueError:
    return ValueError(f"{layer.name}: {name}={value!r} does not convert: {why}")


def _filled(module: nn.Module, state: dict[str, torch.Tensor | None]) -> nn.Module:
    given = {name: value.detach() for name, value in state.items() if value is not None}
    if given:
        first = next(iter(given.values()))
        module.to(device=first.device, dtype=first.dtype)
        module.load_state_dict(given, strict=False)
        missing = set(module.state_dict()) - set(given) - {"num_batches_tracked"}
        assert not missing, missing
    return module


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softmax": lambda: nn.Softmax(-1),
    "log_softmax": lambda: nn.LogSoftmax(-1),
    "celu": nn.CELU,
    "elu": nn.ELU,
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_shrink": nn.Hardshrink,
    "hard_silu": nn.Hardswish,
    "hard_swish": nn.Hardswish,
    "hard_tanh": nn.Hardtanh,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "log_sigmoid": nn.LogSigmoid,
    "mish": nn.Mish,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "soft_shrink": nn.Softshrink,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanh_shrink": nn.Tanhshrink,
}


def _activation(layer: Layer, choice: ActivationChoice, channels: int = -1) -> list[nn.Module]:
    if choice.is_identity:
        return []
    if choice.is_function:
        raise _refuse(layer, "activation", choice.name, "it is a function")
    if choice.name not in _ACTIVATIONS:
        raise _refuse(layer, "activation", choice.name, "torch has no module for it")
    if choice.name in ("softmax", "log_softmax") and channels != -1:
        return [(nn.Softmax if choice.is_softmax else nn.LogSoftmax)(channels)]
    return [_ACTIVATIONS[choice.name]()]


def _relu(layer: Any) -> list[nn.Module]:
    if layer.threshold or layer.max_value not in (None, 6) or (layer.negative_slope and layer.max_value is not None):
        raise _refuse(layer, "max_value", layer.max_value, "torch has ReLU, ReLU6 and LeakyReLU, all with threshold 0")
    if layer.negative_slope:
        return [nn.LeakyReLU(layer.negative_slope)]
    return [nn.ReLU() if layer.max_value is None else nn.ReLU6()]


def _dropout(layer: Any) -> list[nn.Module]:
    for name in ("noise_shape", "seed"):
        if getattr(layer, name) is not None:
            raise _refuse(layer, name, getattr(layer, name), "torch's Dropout draws for each value, from one generator")
    return [nn.Dropout(layer.rate)]


def _softmax(layer: Any) -> list[nn.Module]:
    if not isinstance(layer.axis, int):
        raise _refuse(layer, "axis", layer.axis, "torch's Softmax has one")
    return [nn.Softmax(layer.axis)]


def _step_mean(layer: Any) -> list[nn.Module]:
    if not layer.channels_last:
        raise _refuse(layer, "data_format", layer.data_format, "it converts with channels_last")
    return [StepMean(layer.keepdims)]


# ----- one layer each ----------------------------------------------------------------------------------------------


def _dense(layer: Any) -> list[nn.Module]:
    linear = nn.Linear(layer.input_features, layer.units, layer.use_bias)
    return [_filled(linear, {"weight": layer.weight, "bias": layer.bias}), *_activation(layer, layer.activation)]


def _conv2d(layer: Any) -> list[nn.Module]:
    before, padding = _padding(layer, layer.kernel_size, layer.dilation_rate, 0.0)
    conv = nn.Conv2d(
        layer.input_channels, layer.filters, layer.kernel_size, layer.strides, padding, layer.dilation_rate,
        layer.groups, layer.use_bias,
    )  # fmt: skip
    # Keras' softmax runs along the last axis of its own order.
    last = 1 if layer.channels_last else 3
    filled = _filled(conv, {"weight": layer.weight, "bias": layer.bias})
    return [*before, filled, *_activation(layer, layer.activation, last)]


def _conv1d(layer: Any) -> list[nn.Module]:
    if layer.padding == "same" and layer.strides != 1:
        raise _refuse(layer, "padding", "same", "with strides it depends on the number of steps")
    causal = layer.padding == "causal" and layer.reach > 0
    before: list[nn.Module] = [nn.ConstantPad1d((layer.reach, 0), 0.0)] if causal else []
    conv = nn.Conv1d(
        layer.input_channels, layer.filters, layer.kernel_size, layer.strides,
        "same" if layer.padding == "same" else 0, layer.dilation_rate, layer.groups, layer.use_bias,
    )  # fmt: skip
    filled = _filled(conv, {"weight": layer.weight, "bias": layer.bias})
    last = 1 if layer.channels_last else 2
    found = [*before, filled, *_activation(layer, layer.activation, last)]
    return [Permute(0, 2, 1), *found, Permute(0, 2, 1)] if layer.channels_last else found


def _padding(layer: Any, window: Any, dilation: Any, value: float) -> tuple[list[nn.Module], Any]:
    """Modules that pad before, and the `padding` of torch's module."""
    if layer.padding == "valid":
        return [], 0
    if layer.strides == (1, 1) and value == 0:
        return [], "same"
    size = layer.split_shape(layer.built_input_shape)[1]
    if None in size:
        raise _refuse(layer, "padding", "same", "with strides it depends on the image's size, which is not fixed")
    sides: tuple[int, ...] = ()
    for axis in (1, 0):
        reach = dilation[axis] * (window[axis] - 1) + 1
        total = max((-(-size[axis] // layer.strides[axis]) - 1) * layer.strides[axis] + reach - size[axis], 0)
        sides += (total // 2, total - total // 2)
    return ([nn.ConstantPad2d((sides[0], sides[1], sides[2], sides[3]), value)] if any(sides) else []), 0


def _separable(layer: Any) -> list[nn.Module]:
    return [*_conv2d(layer.depthwise), *_conv2d(layer.pointwise)]


def _conv_transpose2d(layer: Any) -> list[nn.Module]:
    padding = [max(min(crop), 0) for crop in layer._crops]
    if any(before != cut or max(behind, 0) != cut for (before, behind), cut in zip(layer._crops, padding)):
        raise _refuse(layer, "padding", layer.padding, "torch cuts as many rows before as behind")
    added = [max(-behind, 0) for _, behind in layer._crops]
    conv = nn.ConvTranspose2d(
        layer.input_channels, layer.filters, layer.kernel_size, layer.strides, tuple(padding), tuple(added), 1,
        layer.use_bias, layer.dilation_rate,
    )  # fmt: skip
    last = 1 if layer.channels_last else 3
    return [_filled(conv, {"weight": layer.weight, "bias": layer.bias}), *_activation(layer, layer.activation, last)]


def _max_pooling(layer: Any) -> list[nn.Module]:
    before, _ = _padding(layer, layer.pool_size, (1, 1), -torch.inf)
    return [*before, nn.MaxPool2d(layer.pool_size, layer.strides)]


def _average_pooling(layer: Any) -> list[nn.Module]:
    if layer.padding == "same" and _padding(layer, layer.pool_size, (1, 1), -torch.inf)[0]:
        raise _refuse(layer, "padding", "same", "torch counts what it pads unevenly")
    return [nn.AvgPool2d(layer.pool_size, layer.strides)]


def _pooling_1d(layer: Any, kind: Callable[..., nn.Module]) -> list[nn.Module]:
    if layer.padding != "valid":
        raise _refuse(layer, "padding", layer.padding, "it depends on the number of steps")
    module = kind(layer.pool_size, layer.strides)
    return [Permute(0, 2, 1), module, Permute(0, 2, 1)] if layer.channels_last else [module]


def _global_pooling(module: Callable[[int], nn.Module]) -> Callable[[Any], list[nn.Module]]:
    return lambda layer: [module(1), *([] if layer.keepdims else [nn.Flatten()])]


def _zero_padding(layer: Any) -> list[nn.Module]:
    (top, bottom), (left, right) = layer.padding
    return [nn.ZeroPad2d((left, right, top, bottom))]


def _flatten(layer: Any) -> list[nn.Module]:
    shape = layer.built_input_shape
    if layer.data_format == "channels_first" and len(shape) > 2:
        return [Permute(0, *range(2, len(shape)), 1), nn.Flatten()]
    return [nn.Flatten()]


def _reshape(layer: Any) -> list[nn.Module]:
    return [nn.Flatten(), nn.Unflatten(1, layer.target_shape)]


def _batch_normalization(layer: Any) -> list[nn.Module]:
    rank = len(layer.built_input_shape)
    axis = layer.axis % rank
    if layer.center and not layer.scale:
        raise _refuse(layer, "scale", layer.scale, "torch has no bias without a weight")
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}.get(rank)
    if kind is None:
        raise _refuse(layer, "axis", layer.axis, f"torch has no module for an input of {rank} axes")
    norm = kind(layer.channels, layer.epsilon, 1 - layer.momentum, layer.scale)
    if not layer.center:
        norm.register_parameter("bias", None)  # older torch's constructor cannot leave it out alone
    state = {name: getattr(layer, name) for name in ("weight", "bias", "running_mean", "running_var")}
    order = [0, axis, *(other for other in range(1, rank) if other != axis)]
    back = [order.index(position) for position in range(rank)]
    filled = _filled(norm, state)
    return [filled] if axis == 1 else [Permute(*order), filled, Permute(*back)]


def _layer_normalization(layer: Any) -> list[nn.Module]:
    rank = len(layer.built_input_shape)
    axes = layer._axes(layer.built_input_shape)
    if axes != list(range(rank - len(axes), rank)):
        raise _refuse(layer, "axis", layer.axis, "torch normalizes the last axes")
    if layer.center and not layer.scale:
        raise _refuse(layer, "scale", layer.scale, "torch has no bias without a weight")
    norm = nn.LayerNorm(layer.normalized_shape, layer.epsilon, layer.scale, layer.center)
    return [_filled(norm, {"weight": layer.weight, "bias": layer.bias})]


def _rms_normalization(layer: Any) -> list[nn.Module]:
    if layer._axes(layer.built_input_shape) != [len(layer.built_input_shape) - 1]:
        raise _refuse(layer, "axis", layer.axis, "torch normalizes the last axes")
    return [_filled(nn.RMSNorm(layer.normalized_shape, layer.epsilon), {"weight": layer.weight})]


def _embedding(layer: Any) -> list[nn.Module]:
    if layer.mask_zero:
        raise _refuse(layer, "mask_zero", True, "torch has no mask that goes from module to module")
    return [_filled(nn.Embedding(layer.input_dim, layer.output_dim), {"weight": layer.weight})]


def _recurrent(layer: Any) -> list[nn.Module]:
    if layer.go_backwards:
        raise _refuse(layer, "go_backwards", True, "torch's modules go forward or both ways")
    return [_recurrent_module([layer])]


def _bidirectional(layer: Any) -> list[nn.Module]:
    if layer.merge_mode != "concat":
        raise _refuse(layer, "merge_mode", layer.merge_mode, "torch's modules put both outputs side by side")
    return [_recurrent_module([layer.forward_layer, layer.backward_layer])]


def _recurrent_module(directions: list[Recurrent]) -> nn.Module:
    layer: Any = directions[0]
    for other in directions:
        for name in ("dropout", "recurrent_dropout", "stateful", "return_state"):
            if getattr(other, name):
                raise _refuse(other, name, getattr(other, name), "torch's modules have no such option")
        if not other.in_kernel:
            names = {"activation": other.activation, "recurrent_activation": other.recurrent_activation}
            raise ValueError(f"{other.name}: {names} does not convert: torch's modules have tanh and sigmoid")
        if type(other) is not type(layer) or other.op_options() != layer.op_options():
            raise _refuse(other, "backward_layer", type(other).__name__, "torch has the same layer both ways")
    options = {"bias": layer.use_bias, "batch_first": True, "bidirectional": len(directions) == 2}
    module: nn.Module
    if isinstance(layer, layers.LSTM):
        module = nn.LSTM(layer.input_features, layer.units, **options)
    elif isinstance(layer, layers.GRU):
        if not layer.reset_after:
            raise _refuse(layer, "reset_after", False, "torch resets after the product")
        module = nn.GRU(layer.input_features, layer.units, **options)
    else:
        module = nn.RNN(layer.input_features, layer.units, nonlinearity=layer.act.name, **options)
    state: dict[str, torch.Tensor | None] = {}
    for one, suffix in zip(directions, ("_l0", "_l0_reverse")):
        state |= {f"weight_ih{suffix}": one.weight_ih, f"weight_hh{suffix}": one.weight_hh}
        if one.use_bias:
            assert one.bias_ih is not None
            second = torch.zeros_like(one.bias_ih) if one.bias_hh is None else one.bias_hh
            state |= {f"bias_ih{suffix}": one.bias_ih, f"bias_hh{suffix}": second}
    return _filled(module, state)


def _attention(layer: Any) -> list[nn.Module]:
    width, (query, key, value) = layer.num_heads * layer.key_dim, layer.features
    if layer.relative is not None:
        raise _refuse(layer, "relative", layer.relative, "torch's module has no such term")
    if layer.value_dim != layer.key_dim or query != width or (layer.output_features or query) != query:
        raise _refuse(layer, "key_dim", layer.key_dim, "in torch all heads together are as wide as the query")
    module = nn.MultiheadAttention(
        query, layer.num_heads, layer.dropout, layer.use_bias, kdim=key, vdim=value, batch_first=True
    )
    return [_filled(module, dict(layer.state_dict()))]


def _transformer_block(layer: Any) -> list[nn.Module]:
    if layer.causal or layer.cross_attention is not None or layer.attention.relative is not None:
        raise TypeError(f"{layer.name}: of TransformerBlocks an encoder's without relative position converts")
    activation = layer.dense1.activation
    if activation.name not in ("relu", "gelu"):
        raise _refuse(layer, "activation", activation.name, "torch's module has relu and gelu")
    module = nn.TransformerEncoderLayer(
        layer.d_model, layer.attention.num_heads, layer.dense1.units, layer.dropout.rate, activation.name,
        layer.norm1.epsilon, True, layer.norm_first,
    )  # fmt: skip
    parts = {"attention": "self_attn", "norm1": "norm1", "dense1": "linear1", "dense2": "linear2", "norm2": "norm2"}
    state = {
        f"{theirs}.{key}": value
        for ours, theirs in parts.items()
        for key, value in getattr(layer, ours).state_dict().items()
    }
    return [_filled(module, dict(state))]


#: From a layer's class to its function; that of the nearest base class is taken.
CONVERTERS: dict[type[Layer], Callable[[Any], list[nn.Module]]] = {
    layers.Activation: lambda layer: _activation(layer, layer.activation),
    layers.AveragePooling1D: lambda layer: _pooling_1d(layer, nn.AvgPool1d),
    layers.AveragePooling2D: _average_pooling,
    layers.BatchNormalization: _batch_normalization,
    layers.Bidirectional: _bidirectional,
    layers.Conv1D: _conv1d,
    layers.Conv2D: _conv2d,
    layers.Conv2DTranspose: _conv_transpose2d,
    layers.Dense: _dense,
    layers.DepthwiseConv2D: _conv2d,
    layers.Dropout: _dropout,
    layers.Embedding: _embedding,
    layers.Flatten: _flatten,
    layers.GRU: _recurrent,
    layers.GlobalAveragePooling1D: _step_mean,
    layers.GlobalAveragePooling2D: _global_pooling(nn.AdaptiveAvgPool2d),
    layers.GlobalMaxPooling2D: _global_pooling(nn.AdaptiveMaxPool2d),
    layers.LSTM: _recurrent,
    layers.LayerNormalization: _layer_normalization,
    layers.LocalResponseNormalization: lambda layer: [
        nn.LocalResponseNorm(layer.size, layer.alpha * layer.size, layer.beta, layer.k)
    ],
    layers.MaxPooling1D: lambda layer: _pooling_1d(layer, nn.MaxPool1d),
    layers.MaxPooling2D: _max_pooling,
    layers.MultiHeadAttention: _attention,
    layers.RMSNormalization: _rms_normalization,
    layers.ReLU: _relu,
    layers.Reshape: _reshape,
    layers.SeparableConv2D: _separable,
    layers.SimpleRNN: _recurrent,
    layers.Softmax: _softmax,
    layers.TransformerBlock: _transformer_block,
    layers.ZeroPadding2D: _zero_padding,
}
#: Layers whose shape does not matter, so that they need no input to convert.
NEVER_BUILT = (
    layers.Activation, layers.AveragePooling1D, layers.Dropout, layers.LocalResponseNormalization, layers.MaxPooling1D,
    layers.ReLU, layers.Softmax, layers.ZeroPadding2D, layers.GlobalAveragePooling1D, *GLOBAL_POOLINGS,
)  # fmt: skip
