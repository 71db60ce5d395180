"""What a GPU measured of recurrent layers (docs/gpu_times.md): CuPy's are the fastest, Triton's streamed the slowest.

torch's layers are cuDNN's, with weights that lie apart, as a call of ours has them. Triton's streamed layers have other
tiles since: their kernels alone take 0.6 of the time, in float32 a fifth, and are still the slowest.
"""

from __future__ import annotations

from kernels import arrays
from kernels.op import Measured
from kernels.recurrence.gpu_tiles import path_of
from kernels.recurrence.problem import Layer
from kernels.runtime.targets import TARGETS

#: Of layers that cuDNN has, in half precision, by path and cell. GRU's streamed steps are taken for LSTM's.
_HALF = {
    ("held", "lstm"): Measured("LSTM layers whose weights stay on chip", (4.46, 3.32), (6.15, 5.73)),
    ("held", "gru"): Measured("GRU layers whose weights stay on chip", (1.17, 1.04), (1.62, 1.39)),
    ("held", "rnn"): Measured("RNN layers whose weights stay on chip", (2.44, 3.65), (4.61, 5.75)),
    ("streamed", "lstm"): Measured("layers whose weights come from the L2 cache", (0.39, 0.65), (1.36, 2.09)),
    ("streamed", "gru"): Measured("layers whose weights come from the L2 cache", (0.39, 0.65), (1.36, 2.09)),
    ("streamed", "rnn"): Measured("RNN layers whose weights come from the L2 cache", (0.39, None), (0.88, 0.97)),
    ("stepwise", "lstm"): Measured("one step of a wide layer", (1.17, 0.99), (0.81, 0.78)),
    ("stepwise", "gru"): Measured("one step of a wide layer", (1.17, 0.99), (0.81, 0.78)),
}
#: Of streamed layers that cuDNN has, in other types.
_OTHERS = {
    "float32": Measured("layers in float32", (0.04, 0.05), (1.07, 0.95)),
    "float64": Measured("layers in float64", (0.26, None), (None, None)),
}
#: Of layers that cuDNN has not, beside torch's ops step by step, in half precision.
_STEP_BY_STEP = {
    "held": Measured("layers with lengths whose weights stay on chip", (288.15, 271.34), (427.12, 534.34)),
    "streamed": Measured("layers whose weights come from the L2 cache", (7.03, 31.41), (27.57, 117.26)),
    "stepwise": Measured("one step of a wide GRU with the reset before", (1.94, 2.01), (1.12, 1.41)),
}


def measured(p: Layer) -> Measured | None:
    """The class of a layer."""
    half = p.x.itemsize == 2
    path = path_of(p, TARGETS["sm_90"], tensor_cores=half)
    if path == "stepwise" and p.steps > 1:
        return None
    if half:
        return _HALF.get((path, p.cell)) if p.is_torchs else _STEP_BY_STEP[path]
    torch = arrays.loaded_torch()
    # As tf32, which is not what torch is set to by itself, nothing was measured.
    exact = p.x.dtype != "float32" or torch is None or torch.get_float32_matmul_precision() == "highest"
    return _OTHERS[p.x.dtype] if path == "streamed" and p.is_torchs and exact else None
