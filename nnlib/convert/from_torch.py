"""torch modules as layers of this library, with copies of their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from nnlib import layers
from nnlib.layers.base import Layer
from nnlib.models.sequential import Sequential

FIRST = "channels_first"
State = dict[str, torch.Tensor | None]


def from_torch(module: nn.Module) -> Any:
    """A torch module as a built layer, or a nn.Sequential as a Sequential, with copies of its weights.

    Layers on images are channels_first, so that they take what the module takes. A nn.LSTM, nn.GRU or nn.RNN must be
    batch_first; it becomes a layer that returns the output of every step (a Sequential of several for num_layers above
    1, with Dropout between), and LSTM's and RNN's two biases become their sum. A nn.MultiheadAttention becomes
    MultiHeadAttention, a nn.TransformerEncoderLayer a TransformerBlock, a nn.TransformerEncoder a Sequential of them.
    Training mode is kept.

    Raises TypeError for a module that has no counterpart; ValueError naming the module for an option that has none.
    """
    if isinstance(module, nn.Sequential):
        made = Sequential()
        for number, child in enumerate(module):
            for layer in _convert(child, f"module[{number}]"):
                made.add(layer)
        return made.train(module.training)
    found = _convert(module, "module") or [layers.Activation("linear")]
    if len(found) == 1:
        return found[0].train(module.training)
    return Sequential(found).train(module.training)


def _convert(module: nn.Module, where: str) -> list[Layer]:
    if isinstance(module, nn.Sequential):
        return [layer for number, child in enumerate(module) for layer in _convert(child, f"{where}[{number}]")]
    for kind, convert in _CONVERTERS.items():
        if type(module) is kind:
            return convert(module, f"{where} ({kind.__name__})")
    known = ", ".join(kind.__name__ for kind in _CONVERTERS)
    raise TypeError(f"{where}: modules that convert are {known}, Sequential; got a {type(module).__name__}")


def _require(where: str, module: nn.Module, **wanted: Any) -> None:
    for name, value in wanted.items():
        got = getattr(module, name)
        if isinstance(got, torch.Tensor):
            raise ValueError(f"{where}: {name} must be {value!r} to convert, got a tensor {tuple(got.shape)}")
        if got != value:
            raise ValueError(f"{where}: {name} must be {value!r} to convert, got {got!r}")


def _filled(layer: Layer, shape: Sequence[int | None], state: State) -> Layer:
    """The layer built for inputs of this shape, with these weights; None where it has none."""
    given = {name: value for name, value in state.items() if value is not None}
    first = next(iter(given.values()))
    layer.device = first.device
    layer.build_once(tuple(shape))
    layer.to(first.dtype)
    layer.load_state_dict({name: value.detach() for name, value in given.items()})
    return layer


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


# ----- one module each ---------------------------------------------------------------------------------------------


def _linear(module: nn.Linear, where: str) -> list[Layer]:
    layer = layers.Dense(module.out_features, use_bias=module.bias is not None)
    return [_filled(layer, (None, module.in_features), dict(module.named_parameters()))]


def _conv2d(module: nn.Conv2d, where: str) -> list[Layer]:
    _require(where, module, padding_mode="zeros")
    padding, before = "valid", []
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size)]
    if isinstance(module.padding, str):
        padding = module.padding
    elif any(module.padding):
        centred = all(2 * p == r for p, r in zip(module.padding, reach)) and module.stride == (1, 1)
        if centred:
            padding = "same"
        else:
            before = [layers.ZeroPadding2D(_pair(module.padding), FIRST)]
    layer = layers.Conv2D(
        module.out_channels, _pair(module.kernel_size), _pair(module.stride), padding, FIRST, _pair(module.dilation),
        module.groups, use_bias=module.bias is not None,
    )  # fmt: skip
    # Only the channels count: an image of any size that the window fits.
    shape = (None, module.in_channels, None, None)
    return [*before, _filled(layer, shape, dict(module.named_parameters()))]


def _conv1d(module: nn.Conv1d, where: str) -> list[Layer]:
    _require(where, module, padding_mode="zeros")
    ((size,), (stride,), (dilation,)) = module.kernel_size, module.stride, module.dilation
    padding: Any = module.padding
    if not isinstance(padding, str):
        (width,) = padding
        if width and (stride != 1 or 2 * width != dilation * (size - 1)):
            raise ValueError(f"{where}: padding must be 0, or keep the steps' number, to convert, got {width}")
        padding = "same" if width else "valid"
    layer = layers.Conv1D(
        module.out_channels, size, stride, padding, FIRST, dilation, module.groups, use_bias=module.bias is not None
    )
    return [_filled(layer, (None, module.in_channels, None), dict(module.named_parameters()))]


def _conv_transpose2d(module: nn.ConvTranspose2d, where: str) -> list[Layer]:
    _require(where, module, padding_mode="zeros", groups=1, padding=(0, 0))
    layer = layers.Conv2DTranspose(
        module.out_channels, _pair(module.kernel_size), _pair(module.stride), "valid", _pair(module.output_padding),
        FIRST, _pair(module.dilation), use_bias=module.bias is not None,
    )  # fmt: skip
    return [_filled(layer, (None, module.in_channels, None, None), dict(module.named_parameters()))]


def _max_pool2d(module: nn.MaxPool2d, where: str) -> list[Layer]:
    _require(where, module, ceil_mode=False, dilation=1, return_indices=False)
    if any(_pair(module.padding)):
        raise ValueError(f"{where}: padding must be 0 to convert, got {module.padding}")
    return [layers.MaxPooling2D(_pair(module.kernel_size), _pair(module.stride), "valid", FIRST)]


def _avg_pool2d(module: nn.AvgPool2d, where: str) -> list[Layer]:
    _require(where, module, ceil_mode=False, divisor_override=None)
    before: list[Layer] = []
    if any(_pair(module.padding)):
        _require(where, module, count_include_pad=True)
        before = [layers.ZeroPadding2D(_pair(module.padding), FIRST)]
    return [*before, layers.AveragePooling2D(_pair(module.kernel_size), _pair(module.stride), "valid", FIRST)]


def _pooling_1d(kind: Callable[..., Layer], **wanted: Any) -> Callable[[Any, str], list[Layer]]:
    def convert(module: Any, where: str) -> list[Layer]:
        _require(where, module, ceil_mode=False, **wanted)
        size, stride, padding = (
            one[0] if isinstance(one, tuple) else one for one in (module.kernel_size, module.stride, module.padding)
        )
        if padding:
            raise ValueError(f"{where}: padding must be 0 to convert, got {module.padding}")
        return [kind(size, stride, "valid", FIRST)]

    return convert


def _local_response(module: nn.LocalResponseNorm, where: str) -> list[Layer]:
    # torch divides alpha by the number of channels.
    alpha = module.alpha / module.size
    return [layers.LocalResponseNormalization(module.size, alpha, module.beta, module.k, data_format=FIRST)]


def _zero_pad2d(module: nn.ZeroPad2d, where: str) -> list[Layer]:
    left, right, top, bottom = module.padding
    return [layers.ZeroPadding2D(((top, bottom), (left, right)), FIRST)]


def _global_pooling(kind: Callable[..., Layer]) -> Callable[[Any, str], list[Layer]]:
    def convert(module: Any, where: str) -> list[Layer]:
        if _pair(module.output_size) != (1, 1):
            raise ValueError(f"{where}: output_size must be 1 to convert, got {module.output_size}")
        return [kind(FIRST, keepdims=True)]

    return convert


def _batch_norm(module: Any, where: str) -> list[Layer]:
    _require(where, module, track_running_stats=True)
    if module.momentum is None:
        raise ValueError(f"{where}: momentum must be a number to convert, got None")
    center, scale = module.bias is not None, module.weight is not None
    layer = layers.BatchNormalization(1, 1 - module.momentum, module.eps, center, scale)
    state = {name: value for name, value in module.state_dict().items() if name != "num_batches_tracked"}
    image = (None, None) if type(module) is nn.BatchNorm2d else ()
    return [_filled(layer, (None, module.num_features, *image), state)]


def _layer_norm(module: nn.LayerNorm, where: str) -> list[Layer]:
    sizes = tuple(module.normalized_shape)
    axes = tuple(range(-len(sizes), 0))
    axis: Any = -1 if len(sizes) == 1 else axes
    layer = layers.LayerNormalization(axis, module.eps, module.bias is not None, module.weight is not None)
    if module.weight is None:
        layer.build_once((None, *sizes))
        return [layer]
    return [_filled(layer, (None, *sizes), dict(module.named_parameters()))]


def _rms_norm(module: nn.RMSNorm, where: str) -> list[Layer]:
    sizes = tuple(module.normalized_shape)
    if len(sizes) != 1 or module.weight is None or module.eps is None:
        raise ValueError(f"{where}: one normalized size, a weight and eps are needed to convert, got {module}")
    return [_filled(layers.RMSNormalization(-1, module.eps), (None, *sizes), dict(module.named_parameters()))]


def _embedding(module: nn.Embedding, where: str) -> list[Layer]:
    _require(where, module, max_norm=None, scale_grad_by_freq=False, sparse=False, padding_idx=None)
    layer = layers.Embedding(module.num_embeddings, module.embedding_dim)
    return [_filled(layer, (None, None), dict(module.named_parameters()))]


def _recurrent(module: Any, where: str) -> list[Layer]:
    _require(where, module, batch_first=True)
    if getattr(module, "proj_size", 0):
        raise ValueError(f"{where}: proj_size must be 0 to convert, got {module.proj_size}")
    found: list[Layer] = []
    size = module.input_size
    for number in range(module.num_layers):
        if number and module.dropout:
            found.append(layers.Dropout(module.dropout))
        if module.bidirectional:
            pair = layers.Bidirectional(_cell(module))
            _fill_cell(pair.forward_layer, module, f"_l{number}", size)
            _fill_cell(pair.backward_layer, module, f"_l{number}_reverse", size)
            pair.build_once((None, None, size))
            found.append(pair)
        else:
            found.append(_fill_cell(_cell(module), module, f"_l{number}", size))
        size = module.hidden_size * (2 if module.bidirectional else 1)
    return found


def _cell(module: Any) -> Any:
    options: dict[str, Any] = {"use_bias": module.bias, "return_sequences": True}
    if isinstance(module, nn.LSTM):
        return layers.LSTM(module.hidden_size, **options)
    if isinstance(module, nn.GRU):
        return layers.GRU(module.hidden_size, **options)
    return layers.SimpleRNN(module.hidden_size, module.nonlinearity, **options)


def _fill_cell(layer: Any, module: Any, suffix: str, size: int) -> Layer:
    """The layer with the weights that the module calls by this suffix."""
    state: State = {name: getattr(module, name + suffix) for name in ("weight_ih", "weight_hh")}
    if module.bias:
        biases = [getattr(module, name + suffix) for name in ("bias_ih", "bias_hh")]
        if layer.has_second_bias:
            state |= dict(zip(("bias_ih", "bias_hh"), biases))
        else:
            state["bias_ih"] = biases[0] + biases[1]
    return _filled(layer, (None, None, size), state)


def _attention(module: nn.MultiheadAttention, where: str) -> list[Layer]:
    _require(where, module, batch_first=True, add_zero_attn=False, bias_k=None)
    layer = layers.MultiHeadAttention(
        module.num_heads, module.head_dim, dropout=module.dropout, use_bias=module.in_proj_bias is not None
    )
    layer.device = module.out_proj.weight.device
    layer.build_for((None, None, module.embed_dim), (None, None, module.kdim), (None, None, module.vdim))
    layer.built, layer.built_input_shape = True, (None, None, module.embed_dim)
    layer.to(module.out_proj.weight.dtype)
    layer.load_state_dict(module.state_dict())
    return [layer]


def _encoder_layer(module: nn.TransformerEncoderLayer, where: str) -> list[Layer]:
    _require(where, module.self_attn, batch_first=True)
    if module.norm1.bias is None or module.linear1.bias is None:
        raise ValueError(f"{where}: bias must be True to convert, got False")
    named = {nn.functional.relu: "relu", nn.functional.gelu: "gelu"}
    activation = named.get(module.activation, module.activation)
    layer = layers.TransformerBlock(
        module.linear1.in_features, module.self_attn.num_heads, module.linear1.out_features, module.dropout.p,
        activation, module.norm_first, module.norm1.eps,
    )  # fmt: skip
    parts = {"attention": "self_attn", "norm1": "norm1", "dense1": "linear1", "dense2": "linear2", "norm2": "norm2"}
    state = {
        f"{ours}.{key}": value
        for ours, theirs in parts.items()
        for key, value in getattr(module, theirs).state_dict().items()
    }
    return [_filled(layer, (None, None, module.linear1.in_features), dict(state))]


def _encoder(module: nn.TransformerEncoder, where: str) -> list[Layer]:
    parts = [*module.layers, *([] if module.norm is None else [module.norm])]
    return [layer for number, part in enumerate(parts) for layer in _convert(part, f"{where}[{number}]")]


def _activation(name: str, **wanted: Any) -> Callable[[Any, str], list[Layer]]:
    def convert(module: nn.Module, where: str) -> list[Layer]:
        _require(where, module, **wanted)
        return [layers.Activation(name)]

    return convert


def _softmax(module: nn.Softmax, where: str) -> list[Layer]:
    if module.dim is None:
        raise ValueError(f"{where}: dim must be an integer to convert, got None")
    return [layers.Activation("softmax") if module.dim == -1 else layers.Softmax(axis=module.dim)]


def _unflatten(module: nn.Unflatten, where: str) -> list[Layer]:
    _require(where, module, dim=1)
    if -1 in module.unflattened_size:  # of more axes behind, a Reshape would take those too
        raise ValueError(f"{where}: unflattened_size must have no -1 to convert, got {module.unflattened_size}")
    return [layers.Reshape(tuple(module.unflattened_size))]


def _flatten(module: nn.Flatten, where: str) -> list[Layer]:
    _require(where, module, start_dim=1, end_dim=-1)
    return [layers.Flatten()]


def _dropout(module: Any, where: str) -> list[Layer]:
    return [layers.Dropout(module.p)]


_CONVERTERS: dict[type[nn.Module], Callable[[Any, str], list[Layer]]] = {
    nn.AdaptiveAvgPool2d: _global_pooling(layers.GlobalAveragePooling2D),
    nn.AdaptiveMaxPool2d: _global_pooling(layers.GlobalMaxPooling2D),
    nn.AvgPool1d: _pooling_1d(layers.AveragePooling1D),
    nn.AvgPool2d: _avg_pool2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.CELU: _activation("celu", alpha=1.0),
    nn.Conv1d: _conv1d,
    nn.Conv2d: _conv2d,
    nn.ConvTranspose2d: _conv_transpose2d,
    nn.Dropout: _dropout,
    # Whole channels of an image (N, C, H, W).
    nn.Dropout2d: lambda module, where: [layers.Dropout(module.p, noise_shape=(None, None, 1, 1))],
    nn.ELU: _activation("elu", alpha=1.0),
    nn.Embedding: _embedding,
    nn.Flatten: _flatten,
    nn.GELU: _activation("gelu", approximate="none"),
    nn.GRU: _recurrent,
    nn.Hardshrink: _activation("hard_shrink", lambd=0.5),
    nn.Hardsigmoid: _activation("hard_sigmoid"),
    nn.Hardswish: _activation("hard_silu"),
    nn.Hardtanh: _activation("hard_tanh", min_val=-1.0, max_val=1.0),
    nn.Identity: lambda module, where: [],
    nn.LSTM: _recurrent,
    nn.LayerNorm: _layer_norm,
    nn.LeakyReLU: lambda module, where: [layers.ReLU(negative_slope=module.negative_slope)],
    nn.Linear: _linear,
    nn.LocalResponseNorm: _local_response,
    nn.LogSigmoid: _activation("log_sigmoid"),
    nn.LogSoftmax: _activation("log_softmax", dim=-1),
    nn.MaxPool1d: _pooling_1d(layers.MaxPooling1D, dilation=1, return_indices=False),
    nn.MaxPool2d: _max_pool2d,
    nn.Mish: _activation("mish"),
    nn.MultiheadAttention: _attention,
    nn.RMSNorm: _rms_norm,
    nn.RNN: _recurrent,
    nn.ReLU: _activation("relu"),
    nn.ReLU6: lambda module, where: [layers.ReLU(max_value=6.0)],
    nn.SELU: _activation("selu"),
    nn.SiLU: _activation("silu"),
    nn.Sigmoid: _activation("sigmoid"),
    nn.Softmax: _softmax,
    nn.Softplus: _activation("softplus", beta=1.0, threshold=20.0),
    nn.Softshrink: _activation("soft_shrink", lambd=0.5),
    nn.Softsign: _activation("softsign"),
    nn.Tanh: _activation("tanh"),
    nn.Tanhshrink: _activation("tanh_shrink"),
    nn.TransformerEncoder: _encoder,
    nn.TransformerEncoderLayer: _encoder_layer,
    nn.Unflatten: _unflatten,
    nn.ZeroPad2d: _zero_pad2d,
}
