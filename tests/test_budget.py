"""The error budget itself: it lets rounding pass and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support import budget

DTYPES = ["float32", "float64"]


def big_sums(dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of 4096 numbers: torch's, ours (in another order), and the exact ones."""
    numbers = np.random.default_rng(0).standard_normal((50, 4096)).astype(dtype) + 1
    exact = numbers.astype(np.longdouble).sum(1).astype(np.float64)
    torchs = torch.from_numpy(numbers).sum(1).numpy()
    ours = numbers[:, ::-1].reshape(50, 64, 64).sum(1, dtype=dtype).sum(1, dtype=dtype)
    return ours, exact, torchs


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_order_of_summation_passes(dtype):
    assert budget.complaint(*big_sums(dtype)) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_eight_units_in_a_big_sum_fail(dtype, sign):
    ours, exact, torchs = big_sums(dtype)
    ours = exact.astype(dtype)
    at = int(abs(exact).argmax())
    ours[at] += sign * 8 * np.spacing(ours[at])
    found = budget.complaint(ours, exact, torchs)
    assert found is not None and f"first at ({at},)" in found and "1 of 50 wrong" in found


def test_naive_half_precision_accumulation_fails():
    _, exact, torchs = big_sums("float32")
    numbers = np.random.default_rng(0).standard_normal((50, 4096)).astype("float32") + 1
    naive = numbers.astype("float16").sum(1, dtype="float32")
    assert budget.complaint(naive, exact, torchs) is not None


def test_float32_inside_a_float64_kernel_fails():
    ours, exact, torchs = big_sums("float64")
    assert budget.complaint(ours.astype("float32").astype("float64"), exact, torchs) is not None


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_wrong_element_fails(dtype):
    ours, exact, torchs = big_sums(dtype)
    ours[7] = ours[8]
    assert "1 of 50 wrong, first at (7,)" in (budget.complaint(ours, exact, torchs) or "")


def test_a_zero_in_place_of_a_small_element_fails():
    ours, exact, torchs = big_sums("float32")
    exact[3] = ours[3] = torchs[3] = exact.max() * 1e-4
    assert budget.complaint(ours, exact, torchs) is None
    ours[3] = 0
    assert budget.complaint(ours, exact, torchs) is not None


def test_the_allowance_is_stated():
    exact = np.array([1.5, -0.25])
    torchs = np.array([1.5, -0.25 + 2**-22], np.float32)
    assert budget.unit(exact, "float32") == 2**-23
    assert budget.allowance(exact, torchs, "float32") == budget.FACTOR * 2**-22 + budget.BAND * 2**-23
    assert budget.allowance(exact, None, "float32") == budget.BAND * 2**-23


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_values_must_be_where_they_belong(value):
    exact = np.array([1.0, value, 3.0])
    right = exact.astype(np.float32)
    assert budget.complaint(right, exact) is None
    for wrong in (np.nan, np.inf, -np.inf, 0.0):
        found = right.copy()
        found[1] = wrong
        if not np.array_equal(found, right, equal_nan=True):
            assert budget.complaint(found, exact) is not None
        found = right.copy()
        found[0] = wrong
        assert budget.complaint(found, exact) is not None


def test_what_overflows_the_dtype_is_infinite():
    assert budget.complaint(np.array([np.inf, 1], np.float32), np.array([1e39, 1.0])) is None
    assert budget.complaint(np.array([1e38, 1], np.float32), np.array([1e39, 1.0])) is not None


def test_a_scale_of_nothing_but_infinity_is_no_licence():
    exact = np.array([np.inf, 1.0])
    assert budget.complaint(np.array([np.inf, 1.0 + 1e-5], np.float32), exact) is not None


def test_indices_must_be_equal():
    exact = np.array([[1, 2], [3, 4]])
    assert budget.complaint(exact.copy(), exact) is None
    assert "first at (1, 0)" in (budget.complaint(np.array([[1, 2], [0, 4]]), exact) or "")
    assert "floating" in (budget.complaint(exact, exact * 1.0) or "")


def test_shapes_must_be_equal():
    assert "shape" in (budget.complaint(np.ones((2, 1), np.float32), np.ones(2)) or "")


def test_empty_arrays_pass():
    assert budget.complaint(np.ones((0, 3), np.float32), np.ones((0, 3))) is None
