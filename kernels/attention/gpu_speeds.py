"""What a GPU measured of attention (docs/gpu_times.md): which calls automatic choice leaves to torch's own kernels."""

from __future__ import annotations

from kernels.attention.op import ScaledDotProductAttentionProblem
from kernels.attention.problem import AttentionProblem
from kernels.op import Measured

#: Queries and keys from which on the figures hold; they are of 1024 to 4096.
LEAST_LENGTH = 1024

#: By bytes of an element, for widths up to so many columns. torch's output of (B, L, H, E) in memory is copied behind
#: it, which is not in its time: reading and writing it takes a twentieth of that, a tenth with 256 columns.
_PLAIN = {
    2: {
        64: Measured("attention of up to 64 columns in half precision", (0.83, 0.79), (0.20, 0.23)),
        128: Measured("attention of up to 128 columns in half precision", (0.75, 0.75), (0.20, 0.20)),
        256: Measured("attention of up to 256 columns in half precision", (0.87, 0.51), (0.14, 0.18)),
        512: Measured("attention of up to 512 columns in half precision", (0.88, 3.07), (0.41, 1.34)),
    },
    4: {64: Measured("attention of up to 64 columns in float32", (1.30, 0.98), (0.80, None))},
}


def is_torchs(p: AttentionProblem) -> bool:
    """Whether torch's scaled_dot_product_attention computes the same, whatever the values are.

    Not of masks and biases, in which a query may see no key: nobody knows before the call, and torch's kernels do not
    agree on what comes out. Nor where torch's order of scaling and taking the largest score may overflow (a scale of 0
    or less). Of causal calls it is the same but for NaN and infinities in values that a query does not see: torch's
    kernels multiply them by a weight of 0.
    """
    extras = (p.mask, p.bias, p.lengths, p.relative, p.seed, p.window, p.softcap)
    if any(extra is not None for extra in extras) or p.dropout_p > 0 or p.return_lse or p.score_scale <= 0:
        return False
    square = p.query.shape[2] == p.key.shape[2]
    return min(p.query.shape[3], *p.key.shape) > 0 and (square or not p.from_end)


def measured(p: AttentionProblem) -> Measured | None:
    """Of calls that hide nothing: what `attention` promises of values behind causality torch's kernels do not hold."""
    return None if p.hides else _measured(p)


def measured_torchs(p: ScaledDotProductAttentionProblem) -> Measured | None:
    """Of scaled_dot_product_attention, which with is_causal may do as torch's does."""
    return _measured(p.attention)


def _measured(p: AttentionProblem) -> Measured | None:
    width = p.query.shape[3]
    shapes = p.group == 1 and width == p.value.shape[3] and width % 8 == 0
    if not shapes or min(p.query.shape[2], p.key.shape[2]) < LEAST_LENGTH or not is_torchs(p):
        return None
    rows = _PLAIN.get(p.query.itemsize, {})
    return next((found for most, found in rows.items() if width <= most), None)
