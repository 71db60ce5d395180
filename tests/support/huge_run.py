"""Program: calls whose sizes cannot be, of one op after the other. ``python -m tests.support.huge_run``.

A size of one dimension is made huge in every array that has it, by arrays that are expanded and take no memory, or an
argument is. No kernel runs: what is looked at is how a call is refused, and that planning one takes no time that grows
with its sizes. It prints a line before each call, so that the last one names what hung, and a line for each complaint.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import kernels
from kernels.backends import BackendError
from kernels.op import OPS, Implementation
from tests.support import matrix

DONE = "all calls were made"
#: Seconds of the processor's time for all calls together, and bytes for each of them beside what a process has.
SECONDS, BYTES = 150, 6 << 30

#: Sizes by name; arrays by name, each with the names of its sizes; and arguments that are sizes or the like.
Form = tuple[dict[str, int], dict[str, str], dict[str, Any]]
_IMAGE = {"N": 2, "C": 3, "H": 9, "W": 9}
_FILTER = {"K": 4, "R": 3, "S": 3}
_CONVOLUTION = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
_HEADS = {"B": 2, "H": 2, "L": 5, "S": 6, "E": 8, "V": 4}
_ATTENTION = {"query": "B H L E", "key": "B H S E", "value": "B H S V"}
_STEPS = {"T": 4, "B": 3, "I": 5}
_ROWS: Form = ({"M": 5, "C": 7}, {"x": "M C"}, {})
FORMS: dict[str, Form] = {
    "conv2d": (_IMAGE | _FILTER, {"x": "N C H W", "weight": "K C R S", "bias": "K"}, _CONVOLUTION),
    "conv_transpose2d": (
        _IMAGE | _FILTER, {"x": "N C H W", "weight": "C K R S", "bias": "K"}, _CONVOLUTION | {"output_padding": 0},
    ),
    "conv2d_max_pool2d": (
        _IMAGE | _FILTER,
        {"x": "N C H W", "weight": "K C R S", "bias": "K"},
        _CONVOLUTION | {"pool_kernel_size": 2, "pool_stride": 2, "pool_padding": 1},
    ),
    "max_pool2d": (_IMAGE, {"x": "N C H W"}, {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1}),
    "avg_pool2d": (_IMAGE, {"x": "N C H W"}, {"kernel_size": 3, "stride": 2, "padding": 1, "divisor_override": 1}),
    "lp_pool2d": (_IMAGE, {"x": "N C H W"}, {"norm_type": 2, "kernel_size": 3, "stride": 2}),
    "adaptive_avg_pool2d": (_IMAGE, {"x": "N C H W"}, {"output_size": 3}),
    "adaptive_max_pool2d": (_IMAGE, {"x": "N C H W"}, {"output_size": 3}),
    "attention": (_HEADS, _ATTENTION, {"window": 2, "seed": 7}),
    "scaled_dot_product_attention": (_HEADS, _ATTENTION, {"is_causal": True}),
    "linear": ({"M": 5, "I": 6, "O": 7}, {"x": "M I", "weight": "O I", "bias": "O"}, {}),
    "linear_cross_entropy": (
        {"M": 5, "I": 6, "C": 7}, {"input": "M I", "linear_weight": "C I", "target": "M", "linear_bias": "C"},
        {"ignore_index": -100},
    ),
    "cross_entropy": (
        {"M": 5, "C": 7, "D": 3}, {"input": "M C D", "target": "M D", "weight": "C"}, {"ignore_index": -100},
    ),
    "softmax": (*_ROWS[:2], {"dim": 1}),
    "log_softmax": (*_ROWS[:2], {"dim": 1}),
    "layer_norm": (_ROWS[0], {"x": "M C", "weight": "C", "bias": "C"}, {"normalized_shape": "C"}),
    "rms_norm": (_ROWS[0], {"x": "M C", "weight": "C"}, {"normalized_shape": "C"}),
    "embedding": ({"R": 9, "F": 4, "M": 5}, {"input": "M", "weight": "R F"}, {"padding_idx": 1}),
    "dropout": (*_ROWS[:2], {"seed": 7, "stream": 0}),
    **dict.fromkeys(("relu", "gelu", "silu", "sigmoid", "tanh"), _ROWS),
    "lstm_layer": (_STEPS | {"H": 6}, {"x": "T B I", "w_ih": "4H I", "w_hh": "4H H", "b_ih": "4H"}, {}),
    "gru_layer": (_STEPS | {"H": 6}, {"x": "T B I", "w_ih": "3H I", "w_hh": "3H H", "b_ih": "3H"}, {}),
    "rnn_layer": (_STEPS | {"H": 6}, {"x": "T B I", "w_ih": "H I", "w_hh": "H H", "b_ih": "H"}, {}),
}  # fmt: skip
SIZES = (10**5, 2**31 + 1, 2**40, 2**58)
NUMBERS = (0, -1, 10**5, 2**31 - 1, 2**40, 2**63, -(2**63) - 1)


def calls(op: str) -> Iterator[tuple[str, dict[str, int], dict[str, Any]]]:
    """What is huge, the sizes by name, and the arguments beside the arrays."""
    sizes, _, arguments = FORMS[op]
    for name in sizes:
        for size in SIZES:
            yield f"{name} = {size}", sizes | {name: size}, arguments
    for name, usual in arguments.items():
        for number in NUMBERS if isinstance(usual, int) and not isinstance(usual, bool) else ():
            yield f"{name}={number}", sizes, arguments | {name: number}
            if name in ("stride", "padding", "dilation", "kernel_size", "output_size"):
                yield f"{name}=(1, {number})", sizes, arguments | {name: (1, number)}


def arguments_of(op: str, sizes: dict[str, int], arguments: dict[str, Any], kind: str, trains: bool) -> dict[str, Any]:
    """The arguments of a call, its arrays expanded from one element; ValueError where NumPy has no such array."""
    made = {}
    for name, names in FORMS[op][1].items():
        shape = tuple(int(n[:-1] or 1) * sizes[n[-1]] for n in names.split())
        dtype = np.int64 if name == "target" or (op, name) == ("embedding", "input") else np.float32
        array = np.broadcast_to(np.ones(1, dtype), shape)
        made[name] = array
        if kind == "torch":
            tensor = torch.ones(1, dtype=torch.from_numpy(np.ones(1, dtype)).dtype).expand(shape)
            made[name] = tensor.requires_grad_(trains and name in OPS[op].differentiable and tensor.is_floating_point())
    return made | {n: sizes[v] if isinstance(v, str) else v for n, v in arguments.items()}


class Ran(Exception):
    """A kernel would have run."""


def _raise(*_: Any, **__: Any) -> Any:
    raise Ran


def stop_kernels() -> None:
    """Make every implementation raise `Ran` where it would run, after it has been prepared."""

    def prepared(prepare: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda problem: None if prepare(problem) is None else _raise

    for implementation in matrix.implementations():
        changed = {"forward": _raise, "backward": implementation.backward and _raise}
        for name in ("by_address", "backward_by_address", "direct"):
            changed[name] = prepared(getattr(implementation, name))
        made = object.__new__(Implementation)
        made.__dict__.update(implementation.__dict__ | changed)
        OPS[implementation.op.name].implementations[implementation.backend] = made


def complaint(op: str, arguments: dict[str, Any], backend: str, pulls: bool) -> str | None:
    """What is wrong with how a call is refused; None where it would run, or all is well."""
    try:
        kernels.vjp(op, **arguments, backend=backend) if pulls else matrix.public(op)(**arguments, backend=backend)
    except Ran:
        return None
    except (TypeError, ValueError, IndexError, MemoryError, BackendError) as error:
        text, shown = str(error), rf"{op}: ([a-z_]+ .+, got|backend '{backend}' cannot run) .+"
        return None if "\n" not in text and re.fullmatch(shown, text) else f"{type(error).__name__}: {text!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error!r}"
    return None  # An empty result, which no kernel makes.


def main() -> None:
    """All calls."""
    stop_kernels()
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, now + BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    for op in matrix.OP_NAMES:
        for what, sizes, arguments in calls(op):
            for kind, trains in (("numpy", False), ("numpy", True), ("torch", False), ("torch", True)):
                try:
                    given = arguments_of(op, sizes, arguments, kind, trains)
                except (ValueError, RuntimeError):
                    continue  # More bytes than NumPy or torch count.
                for backend in matrix.backends_of(op) if (kind, trains) == ("numpy", False) else ("numba",):
                    call = f"{op}, {what}, {kind}, {'with' if trains else 'without'} gradients, {backend}"
                    print(call, flush=True)
                    found = complaint(op, given, backend, trains and kind == "numpy")
                    if found is not None:
                        print(f"wrong: {call}: {found}", flush=True)
    print(DONE)


if __name__ == "__main__":
    main()
