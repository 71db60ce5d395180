"""linear_cross_entropy on GPUs: torch's matrix products and the Triton kernels of cross_entropy, a chunk at a time."""

from __future__ import annotations

import operator

from kernels.linear import triton_gpu as linear
from kernels.linear_cross_entropy.chunks import Parts, describe, in_chunks
from kernels.linear_cross_entropy.op import LINEAR_CROSS_ENTROPY
from kernels.linear_cross_entropy.torch_stock import cast, concatenate, expand, full
from kernels.op import Implementation
from kernels.runtime.triton_gpu import DTYPES
from kernels.softmax import triton_gpu as softmax

_PARTS = Parts(
    linear.linear, linear.linear_backward, softmax.cross_entropy, softmax.cross_entropy_backward,
    cast, concatenate, expand, full, operator.iadd,
)  # fmt: skip
Implementation(LINEAR_CROSS_ENTROPY, "triton", *in_chunks(_PARTS), dtypes=DTYPES, describe=describe)
