"""Mixed precision: products in half precision, sums that need it in float32, as torch.autocast sorts torch's own ops.

torch.autocast does not know our kernels, so that `nnlib.ops.call` asks here: inside a torch.autocast block, ours or a
user's, the arguments of each op are converted to the type that this op wants.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from llvmlite import binding

from nnlib.names import look_up

# Matrix products in disguise: they gain most, and sum in float32 inside.
_HALF = frozenset(
    "conv2d conv2d_max_pool2d conv_transpose2d linear attention scaled_dot_product_attention "
    "lstm gru rnn lstm_layer gru_layer rnn_layer lstm_cell gru_cell rnn_cell".split()
)
# Those with exponentials, logarithms or variances.
_FULL = frozenset("softmax log_softmax cross_entropy layer_norm batch_norm group_norm rms_norm instance_norm".split())

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "mixed_float16": torch.float16,
    "mixed_bfloat16": torch.bfloat16,
}


def get_precision(choice: str | None) -> torch.dtype | None:
    """The `mixed_precision` argument of compile: None, "float16" or "bfloat16" (or Keras' "mixed_float16",
    "mixed_bfloat16"). Raises ValueError for an unknown name, TypeError for another kind."""
    if choice is None:
        return None
    if not isinstance(choice, str):
        raise TypeError(f"mixed_precision: None or one of {', '.join(DTYPES)} is expected, got {choice!r}")
    return look_up("mixed_precision", choice, DTYPES)


def check_device(dtype: torch.dtype, device: torch.device) -> None:
    """Raises ValueError if the device has no arithmetic of this type: emulated, it is slower than float32."""
    name = str(dtype).removeprefix("torch.")
    if device.type == "cpu":
        features = binding.get_host_cpu_features()
        has_bfloat16 = any(features.get(feature) for feature in ("avx512bf16", "amx-bf16", "bf16"))
        if dtype is torch.bfloat16 and has_bfloat16:
            return
        has = "bfloat16 alone" if has_bfloat16 else "neither float16 nor bfloat16"
        raise ValueError(f"mixed_precision: this processor computes in {has}, got {name}; leave it out, or use a GPU")
    if device.type == "cuda" and dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported():
        raise ValueError(f"mixed_precision: the device {device} computes in float16 alone, got {name}")
    if device.type != "cuda":
        raise ValueError(f"mixed_precision: a model on cpu or cuda is expected, got one on {device}")


def autocast_dtype(op: str, arguments: tuple[Any, ...]) -> torch.dtype | None:
    """What the floating-point arguments of this op are to be converted to; None leaves them as they are."""
    if op not in _HALF and op not in _FULL:
        return None
    device = next((value.device.type for value in arguments if isinstance(value, torch.Tensor)), None)
    if device is None or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device) if op in _HALF else torch.float32


def convert(value: Any, dtype: torch.dtype) -> Any:
    """A tensor, or tensors in tuples, lists and the kernels' dataclasses (such as RelativeShaw), with floating point of
    this type; float64 and the rest stay."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() and value.dtype is not torch.float64 else value
    if isinstance(value, (tuple, list)):
        return type(value)(convert(entry, dtype) for entry in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {entry.name: convert(getattr(value, entry.name), dtype) for entry in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value
