"""ONNX's own test cases of single nodes, run by our functions.

Each adapter takes a node's attributes and inputs and gives its outputs, None for those that are not compared; what is
outside of our ops it refuses with :class:`NotOurs`, and the tests list how many those are.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import kernels
from kernels.recurrence.gates import from_onnx

Array = Any
Attributes = dict[str, Any]

#: What NumPy arrays of ours hold; float16 is the reference's alone.
TYPES = (np.float16, np.float32, np.float64, np.int64, np.int32, np.bool_)


class NotOurs(Exception):
    """A form of the node that our functions do not have."""


@functools.cache
def cases() -> list[Any]:
    """All of ONNX's node test cases."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(collect_testcases(None))


def cases_of(op_type: str) -> list[Any]:
    """The cases whose graph is one node of this type."""
    return [c for c in cases() if [n.op_type for n in c.model.graph.node] == [op_type]]


def arguments_of(case: Any) -> tuple[Attributes, list[Array]]:
    """Attributes of the only node, and the names of its inputs resolved to arrays by `inputs`."""
    from onnx import helper

    node = case.model.graph.node[0]
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}, list(node.input)


def run(case: Any, inputs: list[Array]) -> list[Array]:
    """The node's outputs by our function."""
    attributes, names = arguments_of(case)
    given = iter(inputs)
    # Optional inputs are left out by empty names.
    arrays = [next(given) if name else None for name in names]
    for array in arrays:
        if array is not None and array.dtype not in TYPES:
            raise NotOurs(f"dtype {array.dtype}")
    return list(ADAPTERS[case.model.graph.node[0].op_type](attributes, *arrays))


def _image(x: Array) -> None:
    if x.ndim != 4:
        raise NotOurs(f"{x.ndim - 2}-dimensional images")


def _padding(a: Attributes, x: Array, kernel: Any, strides: Any, dilations: Any) -> tuple[tuple[int, int], ...]:
    """((top, bottom), (left, right)) of `pads` or `auto_pad`."""
    mode = a.get("auto_pad", b"NOTSET").decode()
    if mode in ("NOTSET", "VALID"):
        pads = a.get("pads", (0, 0, 0, 0))
        return (pads[0], pads[2]), (pads[1], pads[3])
    found = []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations):
        whole = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        less, more = whole // 2, whole - whole // 2
        found.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return tuple(found)


def _both_sides(padding: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    (top, bottom), (left, right) = padding
    if top != bottom or left != right:
        raise NotOurs(f"padding {padding} that differs from side to side")
    return top, left


def _conv(a: Attributes, x: Array, weight: Array, bias: Array = None) -> list[Array]:
    _image(x)
    strides, dilations = a.get("strides", (1, 1)), a.get("dilations", (1, 1))
    padding = _padding(a, x, weight.shape[2:], strides, dilations)
    return [kernels.conv2d(x, weight, bias, tuple(strides), padding, tuple(dilations), a.get("group", 1))]


def _conv_transpose(a: Attributes, x: Array, weight: Array, bias: Array = None) -> list[Array]:
    _image(x)
    if "output_shape" in a or a.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NotOurs("padding that follows from the output's shape")
    strides, dilations = a.get("strides", (1, 1)), a.get("dilations", (1, 1))
    padding = _both_sides(_padding(a, x, weight.shape[2:], strides, dilations))
    added = tuple(a.get("output_padding", (0, 0)))
    return [
        kernels.conv_transpose2d(x, weight, bias, tuple(strides), padding, added, a.get("group", 1), tuple(dilations))
    ]


def _window(a: Attributes, x: Array) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, int]]:
    _image(x)
    kernel = tuple(a["kernel_shape"])
    strides, dilations = tuple(a.get("strides", (1, 1))), tuple(a.get("dilations", (1, 1)))
    padding = _both_sides(_padding(a, x, kernel, strides, dilations))
    if any(p > k // 2 for p, k in zip(padding, kernel)):
        raise NotOurs(f"padding {padding} of more than half a window of {kernel}")
    return kernel, strides, dilations, padding


def _max_pool(a: Attributes, x: Array) -> list[Array]:
    _image(x)
    kernel, strides, dilations = a["kernel_shape"], a.get("strides", (1, 1)), a.get("dilations", (1, 1))
    (top, bottom), (left, right) = _padding(a, x, kernel, strides, dilations)
    if "storage_order" not in a and (top != bottom or left != right) and x.dtype in (np.float32, np.float64):
        if a.get("ceil_mode", 0):
            raise NotOurs("padding that differs from side to side under ceil_mode")
        # What is beyond the image is no maximum.
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-np.inf)
        return [kernels.max_pool2d(x, tuple(kernel), tuple(strides), 0, tuple(dilations))]
    kernel, strides, dilations, padding = _window(a, x)
    ceil = bool(a.get("ceil_mode", 0))
    y, indices = kernels.max_pool2d(x, kernel, strides, padding, dilations, ceil, True)
    # ONNX counts through the whole array, or column by column.
    plane = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], 1, 1) * (x.shape[2] * x.shape[3])
    row, column = np.divmod(indices, x.shape[3])
    return [y, plane + (column * x.shape[2] + row if a.get("storage_order", 0) else indices)]


def _avg_pool(a: Attributes, x: Array) -> list[Array]:
    kernel, strides, dilations, padding = _window(a, x)
    if dilations != (1, 1):
        raise NotOurs("dilation of an average")
    return [
        kernels.avg_pool2d(
            x, kernel, strides, padding, bool(a.get("ceil_mode", 0)), bool(a.get("count_include_pad", 0))
        )
    ]


def _lp_pool(a: Attributes, x: Array) -> list[Array]:
    _image(x)
    kernel, strides, dilations = tuple(a["kernel_shape"]), tuple(a.get("strides", (1, 1))), a.get("dilations", (1, 1))
    if tuple(dilations) != (1, 1):
        raise NotOurs("dilation of a norm")
    # torch's and ours is a signed sum under the root for odd norms, and has no padding: zeros add nothing.
    x = np.pad(np.abs(x), ((0, 0), (0, 0), *_padding(a, x, kernel, strides, dilations)))
    return [kernels.lp_pool2d(x, float(a.get("p", 2)), kernel, strides)]


def _global_avg(a: Attributes, x: Array) -> list[Array]:
    _image(x)
    return [kernels.adaptive_avg_pool2d(x, 1)]


def _global_max(a: Attributes, x: Array) -> list[Array]:
    _image(x)
    return [kernels.adaptive_max_pool2d(x, 1)]


def _recurrent(cell: str) -> Callable[..., list[Array]]:
    function = getattr(kernels, cell)

    def adapter(
        a: Attributes, x: Array, w: Array, r: Array, b: Array = None, lengths: Array = None, h0: Array = None,
        c0: Array = None, peepholes: Array = None,
    ) -> list[Array]:  # fmt: skip
        direction = a.get("direction", b"forward").decode()
        if peepholes is not None or "activations" in a or "clip" in a:
            raise NotOurs("peepholes, other activations or clipping")
        first = bool(a.get("layout", 0))
        if first:
            h0, c0 = (None if s is None else s.swapaxes(0, 1) for s in (h0, c0))
            x = x.swapaxes(0, 1)
        if direction == "reverse":
            if lengths is not None and (lengths != len(x)).any():
                raise NotOurs("rows of several lengths in the reverse direction alone")
            x = x[::-1]
        more: dict[str, Any] = {"reset_after": bool(a.get("linear_before_reset", 0))} if cell == "gru" else {}
        state = h0
        if cell == "lstm":
            state = None if h0 is None and c0 is None else (h0, c0)
        y, last = function(
            x, from_onnx(cell, w, r, b), state, bidirectional=direction == "bidirectional", lengths=lengths, **more
        )
        if direction == "reverse":
            y = y[::-1]
        steps, batch, _ = y.shape
        y = y.reshape(steps, batch, len(w), -1).swapaxes(1, 2)
        states = [*last] if cell == "lstm" else [last]
        if first:
            y, states = y.transpose(2, 0, 1, 3), [s.swapaxes(0, 1) for s in states]
        return [y, *states]

    return adapter


def _attention(
    a: Attributes, q: Array, k: Array, v: Array, attn_mask: Array = None, past_key: Array = None,
    past_value: Array = None, nonpad: Array = None,
) -> list[Array]:  # fmt: skip
    flat = q.ndim == 3
    if a.get("qk_matmul_output_mode", 0):
        raise NotOurs("scores as a result")
    if flat:
        q = q.reshape(*q.shape[:2], a["q_num_heads"], -1).swapaxes(1, 2)
        k, v = (m.reshape(*m.shape[:2], a["kv_num_heads"], -1).swapaxes(1, 2) for m in (k, v))
    if past_key is not None:
        if k.shape[2] != q.shape[2] and a.get("is_causal", 0):
            raise NotOurs("causal queries that are not as many as the new keys")
        k, v = np.concatenate([past_key, k], 2), np.concatenate([past_value, v], 2)
    causal = None
    if a.get("is_causal", 0):
        # The first query stands behind the past.
        causal = "bottom_right" if past_key is not None or nonpad is not None else "top_left"
    named: dict[str, Any] = {}
    if attn_mask is not None:
        short = k.shape[2] - attn_mask.shape[-1]
        if short > 0:  # what the mask does not reach is hidden
            beyond = [(0, 0)] * (attn_mask.ndim - 1) + [(0, short)]
            attn_mask = np.pad(attn_mask, beyond, constant_values=False if attn_mask.dtype == bool else -np.inf)
        named["mask" if attn_mask.dtype == bool else "bias"] = attn_mask
    if "left_window_size" in a or "right_window_size" in a:
        sides = tuple(a.get(name, -1) for name in ("left_window_size", "right_window_size"))
        named["window"] = tuple(None if side < 0 else side for side in sides)
    y = kernels.attention(
        q, k, v, causal=causal, scale=a.get("scale"), softcap=a.get("softcap") or None, lengths=nonpad, **named
    )
    if flat:
        y = y.swapaxes(1, 2).reshape(y.shape[0], y.shape[2], -1)
    return [y, *([k, v] if past_key is not None else [])]


def _normalized(x: Array, axis: int) -> tuple[int, ...]:
    return tuple(x.shape[axis:])


def _layer_norm(a: Attributes, x: Array, weight: Array, bias: Array = None) -> list[Array]:
    return [kernels.layer_norm(x, _normalized(x, a.get("axis", -1)), weight, bias, a.get("epsilon", 1e-5))]


def _rms_norm(a: Attributes, x: Array, weight: Array) -> list[Array]:
    return [kernels.rms_norm(x, _normalized(x, a.get("axis", -1)), weight, a.get("epsilon", 1e-5))]


def _cross_entropy(a: Attributes, x: Array, target: Array, weight: Array = None) -> list[Array]:
    reduction, ignored = a.get("reduction", b"mean").decode(), a.get("ignore_index", -100)
    return [kernels.cross_entropy(x, target, weight, ignored, reduction), kernels.log_softmax(x, 1)]


def _gemm(a: Attributes, x: Array, weight: Array, c: Array = None) -> list[Array]:
    if a.get("alpha", 1.0) != 1 or a.get("beta", 1.0) != 1 or (c is not None and (c.ndim > 1 and c.shape[0] > 1)):
        raise NotOurs("factors, or a matrix that is added")
    x = x.T if a.get("transA", 0) else x
    weight = weight if a.get("transB", 0) else weight.T
    bias = None if c is None else np.broadcast_to(c.reshape(-1), (weight.shape[0],))
    return [kernels.linear(x, weight, bias)]


def _matmul(a: Attributes, x: Array, weight: Array) -> list[Array]:
    if weight.ndim > 2:
        raise NotOurs("a batch of second matrices")
    return [kernels.linear(x, weight.T)]


def _gather(a: Attributes, data: Array, indices: Array) -> list[Array]:
    if a.get("axis", 0) or (indices < 0).any():
        raise NotOurs("another axis than the first, or indices from the end")
    rows = kernels.embedding(indices, data.reshape(len(data), -1))
    return [rows.reshape(*indices.shape, *data.shape[1:])]


def _dropout(a: Attributes, x: Array, ratio: Array = None, training: Array = None) -> list[Array]:
    share, training = 0.5 if ratio is None else float(ratio), bool(training)
    if training and share:
        raise NotOurs("random numbers of its own")
    return [kernels.dropout(x, share, training), np.ones_like(x, dtype=bool)]


def _flex_attention(a: Attributes, q: Array, k: Array, v: Array) -> list[Array]:
    if "score_mod" in a or "prob_mod" in a:
        raise NotOurs("a program over the scores")
    return [kernels.attention(q, k, v, scale=a.get("scale"))]


ADAPTERS: dict[str, Callable[..., list[Array]]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _avg_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global_avg,
    "GlobalMaxPool": _global_max,
    "RNN": _recurrent("rnn"),
    "LSTM": _recurrent("lstm"),
    "GRU": _recurrent("gru"),
    "Attention": _attention,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "SoftmaxCrossEntropyLoss": _cross_entropy,
    "Softmax": lambda a, x: [kernels.softmax(x, a.get("axis", -1))],
    "LogSoftmax": lambda a, x: [kernels.log_softmax(x, a.get("axis", -1))],
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _gather,
    "Dropout": _dropout,
    "FlexAttention": _flex_attention,
    "Relu": lambda a, x: [kernels.relu(x)],
    "Sigmoid": lambda a, x: [kernels.sigmoid(x)],
    "Tanh": lambda a, x: [kernels.tanh(x)],
    "Swish": lambda a, x: [kernels.silu(x)],
    "Gelu": lambda a, x: [kernels.gelu(x, a.get("approximate", b"none").decode())],
}
