"""LocalResponseNormalization. kernels has no op for it: it is torch's own, whatever the backend."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from nnlib.layers.images import ImageLayer


class LocalResponseNormalization(ImageLayer):
    """Each value by (k + alpha * the sum of squares over its neighbour channels) ** beta (Krizhevsky et al., 2012).

    Input (N, H, W, C) (see data_format), floating point; output the same shape. The defaults are the paper's, and alpha
    is not divided by size as in torch.

    size: how many channels are summed over, the value's own in the middle. Raises ValueError if it is not positive.
    """

    keeps_shape = True

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size: a positive integer is expected, got {size}")
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def call(self, x: torch.Tensor) -> torch.Tensor:
        y = F.local_response_norm(self.to_kernel_order(x), self.size, self.alpha * self.size, self.beta, self.k)
        return self.from_kernel_order(y)
