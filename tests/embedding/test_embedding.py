"""embedding: numbers worked out by hand, every option against torch, limits, errors, the same bits in any parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.embedding import numba_cpu

BACKENDS = ["numba", "torch", "reference"]
inf, nan = np.inf, np.nan
TABLE = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])


# ----- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int64", "int32"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_by_hand(backend, kind):
    found = kernels.embedding(np.array([[3, 0, 3], [1, 1, 2]], kind), TABLE, backend=backend)
    np.testing.assert_array_equal(found, [[[7, 8], [1, 2], [7, 8]], [[3, 4], [3, 4], [5, 6]]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_by_hand(backend):
    """Row 1 is named three times, row 3 once, row 0 twice, row 2 never."""
    input = np.array([1, 3, 1, 0, 0, 1])
    grad = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0], [16.0, 160.0], [32.0, 320.0]])

    def gradient(**options):
        _, pullback = kernels.vjp("embedding", input, TABLE, **options, backend=backend)
        of_weight, none = pullback(grad)
        assert none is None
        return of_weight

    np.testing.assert_array_equal(gradient(), [[24, 240], [37, 370], [0, 0], [2, 20]])
    np.testing.assert_array_equal(gradient(padding_idx=1), [[24, 240], [0, 0], [0, 0], [2, 20]])
    np.testing.assert_array_equal(gradient(padding_idx=-1), [[24, 240], [37, 370], [0, 0], [0, 0]])
    by_count = gradient(scale_grad_by_freq=True)
    np.testing.assert_allclose(by_count, [[12, 120], [37 / 3, 370 / 3], [0, 0], [2, 20]], rtol=1e-15)
    np.testing.assert_allclose(gradient(scale_grad_by_freq=True, padding_idx=0), [[0, 0], *by_count[1:]], rtol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_padding_row_is_looked_up_like_any_other(backend):
    found = kernels.embedding(np.array([2, 0]), TABLE, padding_idx=2, backend=backend)
    np.testing.assert_array_equal(found, [[5, 6], [1, 2]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_largest_norm_by_hand(backend):
    """Norm 5 becomes 2.5, norm 1 stays; weight itself is not written, and the gradient does not see the shortening."""
    weight = np.array([[3.0, -4.0], [0.6, 0.8]])
    before = weight.copy()
    found, pullback = kernels.vjp("embedding", np.array([0, 1, 0]), weight, max_norm=2.5, backend=backend)
    np.testing.assert_allclose(found, [[1.5, -2], [0.6, 0.8], [1.5, -2]], rtol=1e-7)
    np.testing.assert_array_equal(weight, before)
    np.testing.assert_array_equal(pullback(np.ones((3, 2)))[0], [[2, 2], [1, 1]])


# ----- against torch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("features", [1, 7, 16, 50])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding_idx": 3},
        {"padding_idx": -6},
        {"scale_grad_by_freq": True},
        {"padding_idx": 0, "scale_grad_by_freq": True, "max_norm": 1.0},
        *({"max_norm": 1.5, "norm_type": p} for p in (1.0, 2.0, 3, 0.5, inf)),
    ],
    ids=str,
)
def test_every_option_against_torch(options, shape, features, dtype, backend):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, features, generator=generator, dtype=dtype)
    input = torch.randint(0, 6, shape, generator=generator)
    mine, theirs = (weight.clone().requires_grad_() for _ in range(2))
    found = kernels.embedding(input, mine, **options, backend=backend)
    expected = F.embedding(input, theirs, **options)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    assert torch.equal(mine, weight)
    assert ("max_norm" in options) or torch.equal(theirs, weight)
    incoming = torch.randn(expected.shape, generator=generator, dtype=dtype)
    found.backward(incoming)
    expected.backward(incoming)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_numbers_are_copied_and_not_shortened_away(backend):
    weight = np.array([[nan, 1.0], [inf, 1.0], [-0.0, 1e-42], [-inf, nan]], np.float32)
    input = np.array([3, 2, 1, 0])
    found = kernels.embedding(input, weight, backend=backend)
    np.testing.assert_array_equal(found, weight[::-1])
    assert np.signbit(found[1, 0])
    theirs = torch.from_numpy(weight.copy())
    for p in (1.0, 2.0, 3.0, inf):
        found = kernels.embedding(input, weight, max_norm=0.5, norm_type=p, backend=backend)
        expected = F.embedding(torch.from_numpy(input), theirs.clone(), max_norm=0.5, norm_type=p).numpy()
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_padding_row_receives_may_be_anything(backend):
    _, pullback = kernels.vjp("embedding", np.array([1, 0, 1]), TABLE, padding_idx=1, backend=backend)
    found, _ = pullback(np.array([[nan, inf], [1.0, 2.0], [-inf, 3.0]]))
    np.testing.assert_array_equal(found, [[1, 2], [0, 0], [0, 0], [0, 0]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_no_indices(shape, backend):
    weight = torch.ones(5, 3, requires_grad=True)
    found = kernels.embedding(torch.zeros(shape, dtype=torch.int64), weight, max_norm=0.1, backend=backend)
    assert found.shape == (*shape, 3)
    found.sum().backward()
    assert weight.grad.shape == (5, 3) and not weight.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_indices_and_weights(backend):
    weight = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    input = np.array([[0, 9, 3], [9, 9, 9], [2, 9, 1]])[::2, ::-2]
    expected = np.ascontiguousarray(weight)[np.array([[3, 0], [1, 2]])]
    np.testing.assert_array_equal(kernels.embedding(input, weight, backend=backend), expected)


# ----- the same bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gradient_is_summed_in_the_order_of_the_indices(dtype):
    """1e8 + 1 - 1e8 in float32 tells one order from another; so do the bits of many random numbers."""
    found = kernels.vjp("embedding", np.zeros(3, int), np.ones((1, 1), np.float32), backend="numba")[1]
    big = np.array([[1e8], [1.0], [-1e8]], np.float32)
    assert found(big)[0][0, 0] == 0 and found(big[[0, 2, 1]])[0][0, 0] == 1
    rng = np.random.default_rng(0)
    input, grad = rng.integers(0, 3, 500), rng.standard_normal((500, 40)).astype(dtype)
    found = kernels.vjp("embedding", input, np.ones((3, 40), dtype), backend="numba")[1](grad)[0]
    expected = np.zeros((3, 40), dtype)
    for row, values in zip(input, grad):
        expected[row] += values
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n", [5, 16, 40, 64])
@pytest.mark.parametrize(("rows", "shift"), [(6, 0), (150, 0), (150, 1), (6, 3)])
def test_the_same_bits_in_any_parts(n, rows, shift):
    rng = np.random.default_rng(0)
    places, runs = 50, numba_cpu.RUNS
    input = rng.integers(0, rows, places)
    weight, grad = (rng.standard_normal(s * n).astype(np.float32) for s in (rows, places))

    def run(row_step, run_step, is_far):
        out, back = np.full(places * n, nan, np.float32), np.full(rows * n, nan, np.float32)
        for first in range(0, places, row_step):
            last = min(first + row_step, places)
            numba_cpu.gather_rows(first, last, input, weight, out, n, is_far)
            numba_cpu.shorten_rows(first, last, out, n, 1.0, 2.0)
        for first in range(0, runs, run_step):
            numba_cpu.add_rows(first, min(first + run_step, runs), input, grad, back, n, shift, 2)
        return out, back

    whole = run(places, runs, False)
    expected = np.zeros((rows, n), np.float32)
    for row, values in zip(input, grad.reshape(places, n)):
        expected[row] += values * (row != 2)
    assert not np.isnan(whole[0]).any()
    np.testing.assert_array_equal(whole[1].reshape(rows, n), expected)
    for steps in ((1, 1, False), (7, 32, False), (9, 5, True)):
        for a, b in zip(whole, run(*steps), strict=True):
            np.testing.assert_array_equal(a, b)


# ----- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("as_kind", [np.asarray, torch.as_tensor])
def test_an_index_out_of_range_is_named(as_kind, backend):
    weight = as_kind(TABLE)
    text = r"^embedding: input must lie in \[0, 3\] \(the rows of weight\), got {}$"
    for wrong in (4, -1, 2**40, -(2**63)):
        with pytest.raises(IndexError, match=text.format(f"{wrong} at 2")):
            kernels.embedding(as_kind(np.array([0, 3, wrong, 9])), weight, backend=backend)
    with pytest.raises(IndexError, match=text.format(r"9 at \(1, 2\)")):
        kernels.embedding(as_kind(np.array([[0, 1, 2], [0, 1, 9]], np.int32)), weight, backend=backend)
    with pytest.raises(IndexError, match=text.format("-4")):
        kernels.embedding(as_kind(np.array(-4)), weight, backend=backend)
    with pytest.raises(IndexError, match="^embedding: input must be empty: weight has no rows, got 0 at 0$"):
        kernels.embedding(as_kind(np.array([0, 0])), weight[:0], backend=backend)


def test_an_index_out_of_range_in_strided_indices():
    with pytest.raises(IndexError, match="got 7 at 2$"):
        kernels.embedding(np.array([0, 99, 1, 99, 7, 99])[::2], TABLE)


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ({"input": np.array([0.0])}, TypeError, "input must have dtype int64 or int32, got float64"),
        ({"input": np.array([True])}, TypeError, "input must have dtype int64 or int32, got bool"),
        ({"input": np.array([1], np.uint8)}, TypeError, "input must have dtype int64 or int32, got uint8"),
        ({"weight": TABLE.astype(int)}, TypeError, "weight must have dtype float16 or .*, got int64"),
        ({"weight": TABLE[0]}, ValueError, r"weight must have shape \(rows, features\), got 1 dimensions \(2,\)"),
        ({"weight": TABLE[None]}, ValueError, r"weight must have shape \(rows, features\), got 3 dimensions"),
        ({"padding_idx": 4}, ValueError, r"padding_idx must lie in \[-4, 3\] \(the rows of weight\), got 4"),
        ({"padding_idx": -5}, ValueError, r"padding_idx must lie in \[-4, 3\] \(the rows of weight\), got -5"),
        ({"padding_idx": 0, "weight": TABLE[:0]}, ValueError, "padding_idx must be None: weight has no rows, got 0"),
        ({"padding_idx": 1.0}, TypeError, r"padding_idx must be an int, got 1.0 \(float\)"),
        ({"max_norm": -1.0}, ValueError, "max_norm must be at least 0, got -1.0"),
        ({"max_norm": nan}, ValueError, "max_norm must be at least 0, got nan"),
        ({"max_norm": "1"}, TypeError, "max_norm must be a number, got '1'"),
        ({"norm_type": 0}, ValueError, "norm_type must be above 0, got 0"),
        ({"norm_type": None}, TypeError, "norm_type must be a number, got None"),
        ({"scale_grad_by_freq": 1}, TypeError, "scale_grad_by_freq must be True or False, got 1"),
        ({"sparse": True}, ValueError, "sparse must be False: gradients are dense only, got True"),
        ({"sparse": 0}, TypeError, "sparse must be True or False, got 0"),
    ],
)
def test_wrong_arguments(arguments, error, text):
    with pytest.raises(error, match=f"^embedding: {text}"):
        kernels.embedding(**({"input": np.array([0, 1]), "weight": TABLE} | arguments))


# ----- torch -------------------------------------------------------------------------------------------------------


def test_second_derivatives():
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    input = torch.tensor([[0, 3, 0], [1, 1, 0]])
    assert torch.autograd.gradcheck(lambda w: kernels.embedding(input, w, padding_idx=2), weight)
    assert torch.autograd.gradgradcheck(lambda w: kernels.embedding(input, w, padding_idx=2), weight)


def test_under_compile():
    weight = torch.randn(4, 3, requires_grad=True)
    input = torch.tensor([[0, 3, 0], [1, 1, 0]])
    compiled = torch.compile(kernels.embedding, fullgraph=True, backend="aot_eager")
    options = {"padding_idx": -1, "max_norm": 1.0}
    found = compiled(input, weight, **options)
    other = weight.detach().clone().requires_grad_()
    expected = F.embedding(input, other, **options)
    torch.testing.assert_close(found, expected)
    incoming = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, weight, incoming), torch.autograd.grad(expected, other, incoming)
    )
    with pytest.raises(IndexError, match=r"got 9 at \(1, 0\)$"):
        compiled(torch.tensor([[0, 3, 0], [9, 1, 0]]), weight, **options)
