"""Random calls of each op for hypothesis, and torch's own function to compare with, called as torch's users call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from tests.support import sequence_strategies as sequences
from tests.support.matrix import Arguments

#: A drawn call: the shape of each floating array ("scale" normal numbers), and every other argument.
Drawn = tuple[dict[str, tuple[int, ...]], Arguments]

ACTIVATIONS = (None, "relu", "gelu", "silu", "tanh", "sigmoid")


def _pair(low: int, high: int) -> st.SearchStrategy[Any]:
    one = st.integers(low, high)
    return one | st.tuples(one, one)


def _both(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


@st.composite
def _conv2d(draw: st.DrawFn) -> Drawn:
    groups = draw(st.integers(1, 4))
    per_input, per_output = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilation = draw(_pair(1, 3))
    padding = draw(
        _pair(0, 4)
        | st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2)
        | st.sampled_from(["valid", "same", "same_upper", "same_lower"])
    )
    stride = 1 if padding == "same" else draw(_pair(1, 4))
    image = draw(st.tuples(st.integers(1, 14), st.integers(1, 22)))
    batch = draw(st.sampled_from([(), (0,), (1,), (2,), (3,)]))
    shapes = {"x": (*batch, groups * per_input, *image), "weight": (groups * per_output, per_input, *kernel)}
    if draw(st.booleans()):
        shapes["bias"] = (groups * per_output,)
    arguments = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "activation": draw(st.sampled_from(ACTIVATIONS)),
    }
    return shapes, arguments


@st.composite
def _conv_transpose2d(draw: st.DrawFn) -> Drawn:
    groups = draw(st.integers(1, 3))
    per_input, per_output = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride, dilation = draw(_pair(1, 4)), draw(_pair(1, 3))
    limits = [max(s, d) - 1 for s, d in zip(_both(stride), _both(dilation))]
    output_padding = draw(st.tuples(*(st.integers(0, limit) for limit in limits)))
    image = draw(st.tuples(st.integers(1, 7), st.integers(1, 9)))
    batch = draw(st.sampled_from([(), (0,), (1,), (2,)]))
    shapes = {"x": (*batch, groups * per_input, *image), "weight": (groups * per_input, per_output, *kernel)}
    if draw(st.booleans()):
        shapes["bias"] = (groups * per_output,)
    arguments = {
        "stride": stride,
        "padding": draw(_pair(0, 4)),
        "output_padding": output_padding,
        "groups": groups,
        "dilation": dilation,
    }
    return shapes, arguments


@st.composite
def _image(draw: st.DrawFn, least: int = 1) -> tuple[int, ...]:
    batch = draw(st.sampled_from([(), (0,), (1,), (2,), (3,)]))
    channels = draw(st.integers(1, 19))
    return (*batch, channels, draw(st.integers(least, 14)), draw(st.integers(least, 22)))


@st.composite
def _max_pool2d(draw: st.DrawFn) -> Drawn:
    kernel = draw(_pair(1, 5))
    padding = draw(st.tuples(*(st.integers(0, k // 2) for k in _both(kernel))))
    image = draw(_image())
    # A window whose taps all jump over a tiny image: torch returns indices outside of it there, and its backward pass
    # then writes outside of its memory.
    dilation = draw(st.tuples(*(st.integers(1, max(1, min(3, size))) for size in image[-2:])))
    arguments = {
        "kernel_size": kernel,
        "stride": draw(st.none() | _pair(1, 4)),
        "padding": padding,
        "dilation": dilation,
        "ceil_mode": draw(st.booleans()),
        "return_indices": draw(st.booleans()),
    }
    return {"x": image}, arguments


@st.composite
def _conv2d_max_pool2d(draw: st.DrawFn) -> Drawn:
    shapes, arguments = draw(_conv2d())
    kernel = draw(_pair(1, 4))
    # Padding of the windows lets any of them fit; so does ceil mode, and a kernel of 1.
    plane = _conv_plane(shapes, arguments)
    kernel = tuple(min(k, max(size, 1)) for k, size in zip(_both(kernel), plane))
    windows = {
        "pool_kernel_size": kernel,
        "pool_stride": draw(st.none() | _pair(1, 4)),
        "pool_padding": draw(st.tuples(*(st.integers(0, k // 2) for k in kernel))),
        "pool_ceil_mode": draw(st.booleans()),
    }
    return shapes, arguments | windows


def _conv_plane(shapes: dict[str, tuple[int, ...]], arguments: Arguments) -> tuple[int, ...]:
    """Height and width of a drawn convolution's result, below 1 where its kernel does not fit."""
    meta = {name: torch.empty((1, *shape[1:]) if len(shape) == 4 and name == "x" else shape, device="meta")
            for name, shape in shapes.items()}  # fmt: skip
    try:
        return tuple(_torch_conv2d(**meta, **arguments).shape[-2:])
    except RuntimeError:
        return 0, 0


@st.composite
def _avg_pool2d(draw: st.DrawFn) -> Drawn:
    kernel = draw(_pair(1, 5))
    arguments = {
        "kernel_size": kernel,
        "stride": draw(st.none() | _pair(1, 4)),
        "padding": draw(st.tuples(*(st.integers(0, k // 2) for k in _both(kernel)))),
        "ceil_mode": draw(st.booleans()),
        "count_include_pad": draw(st.booleans()),
        "divisor_override": draw(st.none() | st.sampled_from([1, 3, -2, 7])),
    }
    return {"x": draw(_image())}, arguments


@st.composite
def _adaptive(draw: st.DrawFn, indices: bool = False) -> Drawn:
    sizes = st.integers(1, 9)
    arguments: Arguments = {"output_size": draw(sizes | st.tuples(sizes | st.none(), sizes | st.none()))}
    if indices:
        arguments["return_indices"] = draw(st.booleans())
    return {"x": draw(_image())}, arguments


@st.composite
def _lp_pool2d(draw: st.DrawFn) -> Drawn:
    arguments = {
        "norm_type": draw(st.sampled_from([1, 2, 2.0, 3, 4])),
        "kernel_size": draw(_pair(1, 5)),
        "stride": draw(st.none() | _pair(1, 4)),
        "ceil_mode": draw(st.booleans()),
    }
    return {"x": draw(_image(least=3))}, arguments


@st.composite
def _linear(draw: st.DrawFn) -> Drawn:
    rows = draw(st.lists(st.integers(0, 9), max_size=3))
    features, outputs = draw(st.integers(1, 70)), draw(st.integers(1, 40))
    shapes: dict[str, tuple[int, ...]] = {"x": (*rows, features), "weight": (outputs, features)}
    if draw(st.booleans()):
        shapes["bias"] = (outputs,)
    return shapes, {"activation": draw(st.sampled_from(ACTIVATIONS))}


@st.composite
def _any_shape(draw: st.DrawFn, least: int = 0) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(least, 9), max_size=4))) + draw(st.sampled_from([(), (17,), (40,)]))


@st.composite
def _softmax(draw: st.DrawFn) -> Drawn:
    shape = draw(_any_shape())
    bound = max(len(shape), 1)
    return {"x": shape}, {"dim": draw(st.integers(-bound, bound - 1))}


@st.composite
def _elementwise(draw: st.DrawFn) -> Drawn:
    return {"x": draw(_any_shape())}, {}


@st.composite
def _gelu(draw: st.DrawFn) -> Drawn:
    return {"x": draw(_any_shape())}, {"approximate": draw(st.sampled_from(["none", "tanh"]))}


@st.composite
def _cross_entropy(draw: st.DrawFn) -> Drawn:
    classes = draw(st.integers(2, 40))  # a class alone has nothing but rounding for a gradient
    rest = tuple(draw(st.lists(st.integers(1, 5), max_size=2)))
    batch = draw(st.integers(1, 6))
    one_row = draw(st.booleans())
    shape = (classes,) if one_row else (batch, classes, *rest)
    shapes: dict[str, tuple[int, ...]] = {"input": shape}
    if draw(st.booleans()):
        shapes["weight"] = (classes,)
    arguments: Arguments = {
        "reduction": draw(st.sampled_from(["none", "sum", "mean"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
    }
    if draw(st.booleans()):
        shapes["target"] = shape
    else:
        rows = () if one_row else (batch, *rest)
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        labels = rng.integers(0, classes, rows)
        ignored = draw(st.sampled_from([-100, 0, 3]))
        arguments["ignore_index"] = ignored
        ignored = ignored if ignored < classes else 0
        arguments["target"] = np.where(rng.random(rows) < 0.2, ignored, labels).astype(np.int64)
    return shapes, arguments


@st.composite
def _linear_cross_entropy(draw: st.DrawFn) -> Drawn:
    rows = draw(st.sampled_from([(), (1,), (2,), (5,)]))
    inner = tuple(draw(st.lists(st.integers(1, 4), max_size=2))) if rows else ()
    classes, features = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    shapes: dict[str, tuple[int, ...]] = {"input": (*rows, features), "linear_weight": (classes, *inner, features)}
    shapes |= {"linear_bias": (classes, *inner)} if draw(st.booleans()) else {}
    shapes |= {"weight": (classes,)} if draw(st.booleans()) else {}
    arguments: Arguments = {
        "reduction": draw(st.sampled_from(["none", "sum", "mean"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
    }
    if draw(st.booleans()):
        shapes["target"] = (*rows, classes, *inner)
    else:
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        ignored = draw(st.sampled_from([-100, 0, 1]))
        labels = np.where(rng.random((*rows, *inner)) < 0.2, ignored, rng.integers(0, classes, (*rows, *inner)))
        arguments |= {"target": np.asarray(labels, np.int64), "ignore_index": ignored}
    return shapes, arguments


@st.composite
def _norm(draw: st.DrawFn, with_bias: bool) -> Drawn:
    # Not of one element, which is its own mean: the gradients would be nothing but rounding.
    sizes = (*draw(st.lists(st.integers(1, 7), max_size=2)), draw(st.integers(2, 70)))
    rows = (*draw(st.lists(st.integers(0, 5), max_size=2)), *draw(st.sampled_from([(), (40,)])))
    shapes = {"x": (*rows, *sizes)}
    for name in ("weight", "bias") if with_bias else ("weight",):
        if draw(st.booleans()):
            shapes[name] = sizes
    return shapes, {"normalized_shape": sizes, "eps": draw(st.sampled_from([1e-5, 1e-3, 0.5]))}


@st.composite
def _embedding(draw: st.DrawFn) -> Drawn:
    rows, features = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    places = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    arguments = {
        "input": np.asarray(rng.integers(0, rows, places), draw(st.sampled_from(["int64", "int32"]))),
        "padding_idx": draw(st.none() | st.integers(-rows, rows - 1)),
        "max_norm": draw(st.none() | st.sampled_from([0.5, 2.0, 4.0, 100.0])),
        "norm_type": draw(st.sampled_from([1.0, 2.0, 3.0, 1.5, float("inf")])),
        "scale_grad_by_freq": draw(st.booleans()),
    }
    return {"weight": (rows, features)}, arguments


#: One strategy for each op. A new op needs one; test_properties.py says so when it is missing.
STRATEGIES: dict[str, st.SearchStrategy[Drawn]] = {
    "conv2d": _conv2d(),
    "conv_transpose2d": _conv_transpose2d(),
    "conv2d_max_pool2d": _conv2d_max_pool2d(),
    "max_pool2d": _max_pool2d(),
    "avg_pool2d": _avg_pool2d(),
    "adaptive_avg_pool2d": _adaptive(),
    "adaptive_max_pool2d": _adaptive(indices=True),
    "lp_pool2d": _lp_pool2d(),
    "linear": _linear(),
    "softmax": _softmax(),
    "log_softmax": _softmax(),
    "cross_entropy": _cross_entropy(),
    "linear_cross_entropy": _linear_cross_entropy(),
    "gelu": _gelu(),
    "embedding": _embedding(),
    "layer_norm": _norm(with_bias=True),
    "rms_norm": _norm(with_bias=False),
    **{name: _elementwise() for name in ("relu", "silu", "sigmoid", "tanh")},
    **{name: sequences.recurrent_layer(name) for name in ("rnn_layer", "lstm_layer", "gru_layer")},
    "attention": sequences.attention(),
    "scaled_dot_product_attention": sequences.scaled_dot_product_attention(),
    "dropout": sequences.dropout(),
}


# ----- the same call as torch's users write it ---------------------------------------------------------------------


def _activated(name: str | None, y: torch.Tensor) -> torch.Tensor:
    function: Callable[[torch.Tensor], torch.Tensor] = (lambda y: y) if name is None else getattr(F, name)
    return function(y)


def _torch_conv2d(x: Any, weight: Any, bias: Any = None, *, padding: Any, activation: Any, **rest: Any) -> Any:
    stride, dilation = _both(rest["stride"]), _both(rest["dilation"])
    if padding in ("same_upper", "same_lower"):
        # TensorFlow's rule: ceil(n / stride) outputs; the odd row of padding at the end, or at the start.
        sides = []
        for d in (0, 1):
            n, k = x.shape[d - 2], dilation[d] * (weight.shape[d + 2] - 1) + 1
            total = max((-(-n // stride[d]) - 1) * stride[d] + k - n, 0)
            small, large = total // 2, total - total // 2
            sides.append((small, large) if padding == "same_upper" else (large, small))
        padding = tuple(sides)
    if isinstance(padding, tuple) and isinstance(padding[0], tuple):
        (top, bottom), (left, right) = padding
        x, padding = F.pad(x, (left, right, top, bottom)), 0
    return _activated(activation, F.conv2d(x, weight, bias, padding=padding, **rest))


def _torch_conv2d_max_pool2d(
    pool_kernel_size: Any, pool_stride: Any = None, pool_padding: Any = 0, pool_ceil_mode: Any = False, **rest: Any
) -> Any:
    y = _torch_conv2d(**rest)
    return F.max_pool2d(y, pool_kernel_size, pool_stride, pool_padding, ceil_mode=pool_ceil_mode)


def _torch_linear(x: Any, weight: Any, bias: Any = None, *, activation: Any) -> Any:
    return _activated(activation, F.linear(x, weight, bias))


def _torch_linear_cross_entropy(
    input: Any, linear_weight: Any, target: Any, linear_bias: Any = None, ignore_index: Any = None, **rest: Any
) -> Any:
    logits = F.linear(input, linear_weight.flatten(0, -2), None if linear_bias is None else linear_bias.flatten())
    logits = logits.reshape(*input.shape[:-1], *linear_weight.shape[:-1])
    return F.cross_entropy(logits, target, ignore_index=-100 if ignore_index is None else ignore_index, **rest)


SEQUENCES: dict[str, Callable[..., Any]] = {
    "attention": sequences.torch_attention,
    "scaled_dot_product_attention": sequences.torch_scaled_dot_product_attention,
    "dropout": sequences.torch_dropout,
    **{name: sequences.torch_layer(name) for name in ("rnn_layer", "lstm_layer", "gru_layer")},
}


def torch_call(op: str) -> Callable[..., Any]:
    """torch's own function with our arguments."""
    if op == "conv2d":
        return _torch_conv2d
    if op == "conv2d_max_pool2d":
        return _torch_conv2d_max_pool2d
    if op == "linear":
        return _torch_linear
    if op == "linear_cross_entropy":
        return _torch_linear_cross_entropy
    if op in SEQUENCES:
        return SEQUENCES[op]

    def function(**arguments: Any) -> Any:
        first = arguments.pop("x", None)
        return getattr(F, op)(**arguments) if first is None else getattr(F, op)(first, **arguments)

    return function


def careful_torch_call(op: str) -> Callable[..., Any]:
    """The same, where numbers that are not finite and are hidden stay hidden."""
    if op == "scaled_dot_product_attention":
        return sequences.scaled_dot_product_attention_without_leaks
    return torch_call(op)
