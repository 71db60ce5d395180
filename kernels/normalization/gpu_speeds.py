"""What a GPU measured of the norms (docs/gpu_times.md)."""

from __future__ import annotations

from kernels.normalization.op import NormProblem, RMSNormProblem
from kernels.op import Measured

#: The longest rows that Triton's backward holds whole; the wider ones are of 20480.
LONGEST = 8192

_LAYER = {
    "half": Measured("layer_norm in half precision", (1.53, 1.33), (0.98, 0.90)),
    "wide": Measured("layer_norm of rows above 8192 in half precision", (1.00, 0.95), (1.15, 1.30)),
    "float32": Measured("layer_norm in float32", (1.46, 1.81), (1.02, 1.41)),
}
_RMS = {"half": Measured("rms_norm in half precision", (1.29, 1.79), (0.92, 1.26))}


def measured(p: NormProblem) -> Measured | None:
    """The class of a norm."""
    half, wide = p.x.itemsize == 2, p.extents[1] > LONGEST
    name = ("wide" if half else None) if wide else ("half" if half else p.x.dtype)
    return (_RMS if isinstance(p, RMSNormProblem) else _LAYER).get(name or "")
