"""What a GPU measured of convolutions (docs/gpu_times.md) beside cuDNN, to which automatic choice leaves some."""

from __future__ import annotations

from kernels import arrays
from kernels.conv2d.gpu_launches import Problem, depthwise
from kernels.conv2d.op import ConvTranspose2dProblem
from kernels.op import Measured

#: Channels of a group below which Triton's product has steps across taps.
FEW_CHANNELS = 16

_HALF = Measured("channels-last convolutions in half precision", (1.61, 1.01), (0.57, 0.48))
_FEW = Measured("channels-last convolutions of few channels in half precision", (1.66, 1.22), (1.65, 0.47))
_DEPTHWISE = Measured("channels-last depthwise convolutions in half precision", (1.31, 0.58), (1.03, 0.66))
_TRANSPOSED = Measured("channels-last transposed convolutions in half precision", (1.29, 0.92), (0.39, 0.39))
_TF32 = Measured("channels-last convolutions in tf32", (1.14, 0.55), (0.33, 0.28))
_TF32_CHANNELS_FIRST = Measured("convolutions in tf32", (0.87, 0.56), (0.30, 0.32))


def multiplies_in_tf32() -> bool:
    """Whether torch is set to convolve float32 in tf32, as it is by itself."""
    torch = arrays.loaded_torch()
    if torch is None:
        return False
    cudnn = torch.backends.cudnn
    return bool(cudnn.conv.fp32_precision == "tf32" if hasattr(cudnn, "conv") else cudnn.allow_tf32)


def measured(p: Problem) -> Measured | None:
    """The class of a convolution, forward or transposed."""
    half, last, transposed = p.x.itemsize == 2, p.x.channels_last, isinstance(p, ConvTranspose2dProblem)
    few = p.x.shape[1] < FEW_CHANNELS
    if p.groups > 1:
        return _DEPTHWISE if depthwise(p) and half and last and not transposed else None
    if transposed:
        return _TRANSPOSED if half and last and not few else None
    if half:
        return (_FEW if few else _HALF) if last else None
    if p.x.dtype != "float32" or few or not multiplies_in_tf32():
        return None
    return _TF32 if last else _TF32_CHANNELS_FIRST
