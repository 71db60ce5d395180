"""attention's backward pass in Triton, interpreted: scores of +inf, and scores as large as they can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kernels
from tests.attention.helpers import (
    LARGE_SCORES,
    backward_of_infinite_scores,
    check_gradients_of_large_scores,
    inputs,
)
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


@pytest.mark.parametrize("queries, size", LARGE_SCORES)
@pytest.mark.parametrize("width", [8, 64, 300])
def test_large_scores_have_finite_gradients(width: int, queries: int, size: float):
    """The interpreter's products are NumPy's, whose order of summing up follows the tile's shape."""
    with on_cpu():
        check_gradients_of_large_scores("triton", "triton", width, queries, size, torch.from_numpy, same_sums=False)
