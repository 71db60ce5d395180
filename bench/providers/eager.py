"""PyTorch eager: torch's own function for each op, called as its users call it.

An op with torch's name and arguments needs nothing here. The others are spelled out, and what torch has no function for
runs on the library's own torch backend (the same formulas, a few microseconds of Python more), with a note.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import kernels
from bench.providers import recurrent
from bench.providers.provider import Call, missing_package
from bench.providers.tensors import tensor_call
from bench.workload import Workload

Function = Callable[..., Any]
NOTE_BACKEND = "torch has no such function: the library's torch backend"
NOTE_RANDOM = "random: not checked"


def _activated(function: Function, activation: str | None) -> Function:
    """`function` followed by an activation, as two calls of torch."""
    if activation is None:
        return function
    follow: Function = getattr(torch, activation, None) or getattr(F, activation)
    return lambda **arguments: follow(function(**arguments))


def _conv2d(workload: Workload) -> Function | None:
    problem: Any = workload.problem
    top, bottom, left, right = problem.padding
    uneven = top != bottom or left != right

    def run(x: Any, weight: Any, bias: Any = None, **_: Any) -> Any:
        padding = (top, left)
        if uneven:
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        return F.conv2d(x, weight, bias, problem.stride, padding, problem.dilation, problem.groups)

    return _activated(run, workload.arguments.get("activation"))


def _conv2d_max_pool2d(workload: Workload) -> Function | None:
    convolve = _conv2d(workload)
    problem: Any = workload.problem
    windows = (problem.pool_kernel_size, problem.pool_stride, problem.pool_padding)
    assert convolve is not None
    return lambda **arguments: F.max_pool2d(convolve(**arguments), *windows, ceil_mode=problem.pool_ceil_mode)


def _attention(workload: Workload) -> Function | None:
    problem: Any = workload.problem
    beyond = ("window", "softcap", "relative", "lengths")
    if any(getattr(problem, name, None) is not None for name in beyond) or problem.return_lse:
        return None
    causal, has_mask = problem.causal, problem.mask is not None or problem.bias is not None
    if (causal and has_mask) or causal == "bottom_right" or (problem.mask is not None and problem.bias is not None):
        return None

    def run(query: Any, key: Any, value: Any, mask: Any = None, bias: Any = None, **_: Any) -> Any:
        added = bias if mask is None else mask
        grouped = query.shape[-3] != key.shape[-3] if query.ndim > 3 else False
        return F.scaled_dot_product_attention(
            query, key, value, added, problem.dropout_p, causal is not None, scale=problem.scale, enable_gqa=grouped
        )

    return run


def _dropout(workload: Workload) -> Function | None:
    p, training = workload.arguments.get("p", 0.5), workload.arguments.get("training", True)
    return lambda x, **_: F.dropout(x, p, training)


_SPELLED: dict[str, Callable[[Workload], Function | None]] = {
    "conv2d": _conv2d,
    "conv2d_max_pool2d": _conv2d_max_pool2d,
    "attention": _attention,
    "dropout": _dropout,
    "rnn_layer": recurrent.torch_layer,
    "lstm_layer": recurrent.torch_layer,
    "gru_layer": recurrent.torch_layer,
}


def _by_name(workload: Workload) -> Function | None:
    """torch.nn.functional's function of the op's name; ours have its arguments, but for the activation."""
    op = workload.case.op
    # These three of torch's own do without a Python wrapper that looks at `inplace`.
    function: Function | None = getattr(torch if op in ("relu", "sigmoid", "tanh") else F, op, None)
    if function is None:
        return None
    parameters = inspect.signature(getattr(kernels, op)).parameters
    given = workload.arguments
    # Ours may have a default where torch's has none.
    plain = {
        name: given.get(name, parameter.default)
        for name, parameter in parameters.items()
        if name not in ("activation", "device", "backend")
        and not isinstance(given.get(name), np.ndarray)
        and parameter.default is not inspect.Parameter.empty
    }
    (first, *_) = parameters

    def run(**arguments: Any) -> Any:
        arguments.pop("activation", None)
        return function(arguments.pop(first), **{**plain, **arguments})

    return _activated(run, given.get("activation"))


def torch_function(workload: Workload) -> Function | None:
    """The case as a function on tensors by keyword, in torch's own functions; None where torch has none."""
    return _SPELLED.get(workload.case.op, _by_name)(workload)


def is_random(workload: Workload) -> bool:
    """Whether torch draws numbers of its own, so that its results cannot be compared with anything."""
    if workload.case.op == "dropout":
        return True
    return bool(workload.arguments.get("dropout_p", 0.0))


class Eager:
    """PyTorch as it is called by default."""

    name = "torch"
    title = "PyTorch eager"

    def missing(self) -> str | None:
        """It needs torch."""
        return missing_package("torch")

    def prepare(self, workload: Workload, threads: int) -> Call:
        """torch's own function, or the torch backend of the library."""
        function = torch_function(workload)
        own = functools.partial(getattr(kernels, workload.case.op), backend="torch")
        if function is None:
            return tensor_call(own, workload, note=NOTE_BACKEND)
        random = is_random(workload)
        call = tensor_call(function, workload, checked=not random, note=NOTE_RANDOM if random else "")
        try:
            call.run()
        except (TypeError, ValueError, RuntimeError):  # We take what torch's function does not: int32 labels, say.
            return tensor_call(own, workload, note=NOTE_BACKEND)
        return call
