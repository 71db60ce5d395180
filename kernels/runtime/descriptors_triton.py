"""Tensor descriptors: tiles that the GPU's own unit (TMA, from sm_90 on) copies to shared memory."""

from __future__ import annotations

from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

#: What the kernels with descriptors are compiled and inspected for; others take pointers.
DESCRIBED_TARGETS = ("sm_90", "sm_100")
#: Bytes that addresses and strides must be multiples of.
ALIGNED = 16


def describable_rows(tensor: torch.Tensor) -> bool:
    """Whether a 4-d tensor can be described: rows contiguous, begin and strides aligned, no stride of 0."""
    whole = ALIGNED // tensor.element_size()
    strides = [stride for size, stride in zip(tensor.shape, tensor.stride()) if size > 1]
    inner = tensor.shape[3] == 1 or tensor.stride(3) == 1
    # On the meta device, where kernels are only compiled, addresses are 0.
    begins = tensor.is_meta or tensor.data_ptr() % ALIGNED == 0
    outer = strides[:-1] if tensor.shape[3] > 1 else strides
    return inner and begins and tensor.numel() > 0 and all(s > 0 and s % whole == 0 for s in outer)


def described_rows(tensor: torch.Tensor, rows: int, columns: int) -> Any:
    """A descriptor of a 4-d tensor for tiles (1, 1, rows, columns); what lies outside of the tensor is read as 0."""
    whole = ALIGNED // tensor.element_size()
    # The stride of a single place may be anything; the hardware wants a multiple of 16 bytes.
    strides = [s if n > 1 else whole for n, s in zip(tensor.shape[:3], tensor.stride())]
    return TensorDescriptor(tensor, list(tensor.shape), [*strides, 1], [1, 1, rows, columns])
