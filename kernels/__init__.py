"""Hand-written neural-network kernels on NumPy arrays and torch tensors, forward and backward.

Every function takes arrays of one kind (NumPy, torch, CuPy; any strides) and returns the same kind, and takes
``device=`` and ``backend=`` by keyword. `explain` says which kernel a call would run and why, `use_backend` chooses for
a block, `info` (or ``python -m kernels``) describes the installation.
"""

from __future__ import annotations

from importlib import metadata as _metadata


def _refuse_namesake() -> None:
    """Hugging Face's package of the same name and this one cannot be imported side by side."""
    try:
        version = _metadata.version("kernels")
    except _metadata.PackageNotFoundError:
        return
    raise ImportError(
        f"Hugging Face's package 'kernels' {version} is installed here too, and nnlib-kernels is also imported as "
        "'kernels': uninstall one of them (pip uninstall kernels) or give each its own environment"
    )


_refuse_namesake()

from kernels.activation.op import gelu, relu, sigmoid, silu, tanh  # noqa: E402
from kernels.attention.op import attention, scaled_dot_product_attention  # noqa: E402
from kernels.attention.relative import RelativeALiBi, RelativeShaw, RelativeT5, alibi_slopes  # noqa: E402
from kernels.backends import BackendError  # noqa: E402
from kernels.conv2d.op import conv2d, conv_transpose2d  # noqa: E402
from kernels.conv2d_max_pool2d.op import conv2d_max_pool2d  # noqa: E402
from kernels.dispatch import use_backend  # noqa: E402
from kernels.dropout.op import dropout  # noqa: E402
from kernels.embedding.op import embedding  # noqa: E402
from kernels.embedding.positions import position_encoding  # noqa: E402
from kernels.inspection import Explanation, explain, vjp  # noqa: E402
from kernels.installation import Info, info  # noqa: E402
from kernels.linear.op import linear  # noqa: E402
from kernels.linear.packed import PackedLinear, pack_linear  # noqa: E402
from kernels.linear_cross_entropy.op import linear_cross_entropy  # noqa: E402
from kernels.normalization.op import layer_norm, rms_norm  # noqa: E402
from kernels.pool2d.adaptive import adaptive_avg_pool2d, adaptive_max_pool2d  # noqa: E402
from kernels.pool2d.op import avg_pool2d, lp_pool2d, max_pool2d  # noqa: E402
from kernels.recurrence.op import gru_layer, lstm_layer, rnn_layer  # noqa: E402
from kernels.recurrence.stack import gru, lstm, rnn  # noqa: E402
from kernels.recurrence.steps import gru_cell, lstm_cell, rnn_cell  # noqa: E402
from kernels.runtime.value_reports import check_device_errors  # noqa: E402
from kernels.softmax.op import cross_entropy, log_softmax, softmax  # noqa: E402
from kernels.tuning import Tuned, tune  # noqa: E402

#: Tells this package from Hugging Face's of the same name.
DISTRIBUTION = "nnlib-kernels"

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Explanation",
    "Info",
    "PackedLinear",
    "RelativeALiBi",
    "RelativeShaw",
    "RelativeT5",
    "Tuned",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "alibi_slopes",
    "attention",
    "avg_pool2d",
    "check_device_errors",
    "conv2d",
    "conv2d_max_pool2d",
    "conv_transpose2d",
    "cross_entropy",
    "dropout",
    "embedding",
    "explain",
    "gelu",
    "gru",
    "gru_cell",
    "gru_layer",
    "info",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "lp_pool2d",
    "lstm",
    "lstm_cell",
    "lstm_layer",
    "max_pool2d",
    "pack_linear",
    "position_encoding",
    "relu",
    "rms_norm",
    "rnn",
    "rnn_cell",
    "rnn_layer",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "softmax",
    "tanh",
    "tune",
    "use_backend",
    "vjp",
]
