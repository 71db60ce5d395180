"""attention's backward pass in Triton, interpreted: scores of +inf."""

from __future__ import annotations

import numpy as np
import torch

import kernels
from tests.attention.helpers import backward_of_infinite_scores, inputs
from tests.support.triton_interpreter import on_cpu


def test_scores_of_plus_infinity():
    """Weights of such a query are no numbers, as in the reference; those of the others are."""
    with on_cpu():
        kernels.explain("attention", *map(torch.from_numpy, inputs(1, 2, 5, 9)), backend="triton")
        exact, found = backward_of_infinite_scores("triton", torch.from_numpy)
    for a, b in zip(found, exact, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert np.isnan(b).any()
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
