"""What re-implementations of pooling get wrong, on every CPU backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels

BACKENDS = ("numba", "torch", "reference")
INF, NAN = float("inf"), float("nan")
OPS: dict[str, dict[str, Any]] = {
    "max_pool2d": {"kernel_size": 2},
    "avg_pool2d": {"kernel_size": 2},
    "adaptive_max_pool2d": {"output_size": 2},
    "adaptive_avg_pool2d": {"output_size": 2},
    "lp_pool2d": {"norm_type": 2, "kernel_size": 2},
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def image(*rows: list[float], dtype: str = "float32") -> np.ndarray:
    """One channel from its rows."""
    return np.array(rows, dtype)[None, None]


# ----- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "rounded_down", "rounded_up"),
    [
        (5, 2, 3, 1, 2, 2),  # (2 * 3 >= 5 + 1): the third window would start in the padding
        (8, 3, 2, 1, 4, 5),
        (4, 3, 2, 1, 2, 3),
        (3, 2, 2, 0, 1, 2),
        (5, 1, 3, 0, 2, 2),
        (8, 9, 2, 4, 4, 5),
    ],
)
def test_ceil_mode_drops_a_window_behind_the_image(
    backend: str, size: int, kernel: int, stride: int, padding: int, rounded_down: int, rounded_up: int
) -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, size, size)).astype("float32")
    for ceil_mode, outputs in ((False, rounded_down), (True, rounded_up)):
        for op in ("max_pool2d", "avg_pool2d"):
            arguments = (kernel, stride, padding)
            y = getattr(kernels, op)(x, *arguments, ceil_mode=ceil_mode, backend=backend)
            want = getattr(F, op)(torch.from_numpy(x), *arguments, ceil_mode=ceil_mode)
            assert y.shape[2:] == (outputs, outputs)
            np.testing.assert_allclose(y, want.numpy(), rtol=1e-6, atol=1e-7)


def test_divisor_counts_padding_but_not_what_ceil_mode_adds(backend: str) -> None:
    x = np.arange(1, 17, dtype="float32").reshape(1, 1, 4, 4)
    y = kernels.avg_pool2d(x, 3, 2, 1, ceil_mode=True, backend=backend)
    np.testing.assert_allclose(y, F.avg_pool2d(torch.from_numpy(x), 3, 2, 1, True).numpy(), rtol=1e-6)
    assert y[0, 0, 2].tolist() == [4.5, 7.5, 4.0]
    assert (y[0, 0, 0, 2], y[0, 0, 1, 2]) == (2.0, 6.0)


def test_divisor_override_wins(backend: str) -> None:
    x = np.ones((1, 1, 4, 4), "float32")
    for counts in (True, False):
        y = kernels.avg_pool2d(x, 2, 2, 1, count_include_pad=counts, divisor_override=2, backend=backend)
        assert y[0, 0].tolist() == [[0.5, 1, 0.5], [1, 2, 1], [0.5, 1, 0.5]]
    assert kernels.avg_pool2d(x, 2, divisor_override=-4, backend=backend)[0, 0, 0, 0] == -1


@pytest.mark.parametrize(("size", "outputs"), [(7, 3), (5, 5), (3, 7), (10, 4), (1, 3), (9, 1)])
def test_adaptive_windows(backend: str, size: int, outputs: int) -> None:
    x = np.arange(size, dtype="float64").reshape(1, 1, 1, size)
    starts = [i * size // outputs for i in range(outputs)]
    ends = [math.ceil((i + 1) * size / outputs) for i in range(outputs)]
    mean = kernels.adaptive_avg_pool2d(x, (1, outputs), backend=backend)
    largest = kernels.adaptive_max_pool2d(x, (1, outputs), backend=backend)
    np.testing.assert_allclose(mean[0, 0, 0], [(s + e - 1) / 2 for s, e in zip(starts, ends)])
    assert largest[0, 0, 0].tolist() == [e - 1 for e in ends]


# ----- NaN, infinities, ties ---------------------------------------------------------------------------------------

#: (kernel, stride, padding, dilation): the specialised kernels, the general one, and the one for wide strides.
WAYS = [(2, 2, 0, 1), (3, 2, 1, 1), (3, 1, 1, 1), (2, 1, 0, 1), (3, 1, 1, 2), (2, 3, 1, 1), (5, 2, 2, 1)]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", WAYS)
def test_one_nan_wins_wherever_it_is(backend: str, way: tuple[int, ...], dtype: str, last: bool) -> None:
    rng = np.random.default_rng(1)
    shape = (1, 2, 7, 37) if not last else (1, 19, 7, 9)
    for column in range(0, shape[3], 1 if backend == "numba" else 9):
        x = rng.standard_normal(shape).astype(dtype)
        x[0, -1, column % 7, column] = NAN
        tensor = torch.from_numpy(x)
        if last:
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        want, indices = F.max_pool2d(tensor, *way, return_indices=True)
        np.testing.assert_array_equal(kernels.max_pool2d(x, *way, backend=backend), want.numpy())
        got = kernels.max_pool2d(x, *way, return_indices=True, backend=backend)
        np.testing.assert_array_equal(got[0], want.numpy())
        np.testing.assert_array_equal(got[1], indices.numpy())


def test_last_of_several_nan_is_the_one(backend: str) -> None:
    x = image([1, NAN, 5, NAN], [NAN, 2, 3, 4])
    y, indices = kernels.max_pool2d(x, 2, return_indices=True, backend=backend)
    assert np.isnan(y).all() and indices.ravel().tolist() == [4, 3]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("last", [False, True])
def test_window_of_minus_infinity_has_a_valid_index(backend: str, way: tuple[int, ...], last: bool) -> None:
    x = np.full((1, 3, 9, 21), -INF, "float32")
    want, indices = F.max_pool2d(torch.from_numpy(x), *way, return_indices=True)
    if last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    got = kernels.max_pool2d(x, *way, return_indices=True, backend=backend)
    assert (got[0] == -INF).all() and want.shape == got[0].shape
    np.testing.assert_array_equal(got[1], indices.numpy())


@pytest.mark.parametrize("name", ["numba", "reference"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("last", [False, True])
def test_window_without_a_tap_inside(name: str, stride: int, last: bool) -> None:
    """Where dilation takes every tap past a small image: -inf, an index in the plane, a gradient that goes there."""
    x = np.ones((1, 2, 2, 2), "float32")
    if last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    y, pullback = kernels.vjp("max_pool2d", x, 2, stride, 1, 3, return_indices=True, backend=name)
    assert (y[0] == -INF).all() and (y[1] >= 0).all() and (y[1] < 4).all()
    (dx,) = pullback(np.ones_like(y[0]))
    assert dx.sum() == y[0].size


def test_padding_never_wins(backend: str) -> None:
    x = -np.ones((1, 1, 3, 3), "float32")
    assert (kernels.max_pool2d(x, 3, 1, 1, backend=backend) == -1).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("last", [False, True])
def test_first_of_equal_values_wins_and_keeps_its_sign(backend: str, way: tuple[int, ...], last: bool) -> None:
    rng = np.random.default_rng(2)
    x = rng.choice([0.0, -0.0], (2, 5, 9, 35)).astype("float32")
    want, indices = F.max_pool2d(torch.from_numpy(x), *way, return_indices=True)
    if last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    y = kernels.max_pool2d(x, *way, backend=backend)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(want.numpy()))
    np.testing.assert_array_equal(kernels.max_pool2d(x, *way, return_indices=True, backend=backend)[1], indices.numpy())


def test_overlapping_windows_add_their_gradients(backend: str) -> None:
    x = image([0, 0, 0], [0, 9, 0], [0, 0, 0])
    _, pullback = kernels.vjp("max_pool2d", x, 2, 1, backend=backend)
    (dx,) = pullback(np.array([[[[1, 2], [3, 4]]]], "float32"))
    assert dx[0, 0].tolist() == [[0, 0, 0], [0, 10, 0], [0, 0, 0]]


@pytest.mark.parametrize("op", ["avg_pool2d", "adaptive_avg_pool2d"])
def test_infinities_and_nan_stay_in_their_windows(backend: str, op: str) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 3, 9, 40)).astype("float32")
    x[rng.random(x.shape) < 0.03] = NAN
    x[rng.random(x.shape) < 0.03] = INF
    x[rng.random(x.shape) < 0.03] = -INF
    calls: list[tuple[Any, ...]] = [(2,), (3, 2, 1), (3, 1, 1), (5, 4)] if op == "avg_pool2d" else [(3,), ((4, 7),)]
    for arguments in calls:
        want = getattr(F, op)(torch.from_numpy(x), *arguments).numpy()
        np.testing.assert_allclose(getattr(kernels, op)(x, *arguments, backend=backend), want, rtol=1e-5, atol=1e-5)


# ----- Lp ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [1, 2, 3, 4, 0.5, 1.5, -1, -2, -0.5, INF, -INF])
@pytest.mark.parametrize("way", [(2, None, False), (2, 2, True), (3, 1, False), ((2, 3), (3, 2), True)])
def test_lp_is_torchs_for_every_input(backend: str, norm_type: float, way: tuple[Any, ...]) -> None:
    """Signs, zeros (in whole windows too), NaN and infinities: values, and gradients with their NaN."""
    rng = np.random.default_rng(5)
    x = rng.choice([-2.0, -1.0, -0.5, 0.0, 1.0, 4.0], (2, 2, 9, 37))  # with exact powers and sums
    x[0, 0, :4] = 0
    x[0, 1, :, 30:] = -0.0
    x[1, 0][rng.random((9, 37)) < 0.05] = NAN
    x[1, 0][rng.random((9, 37)) < 0.05] = INF
    leaf = torch.from_numpy(x).requires_grad_()
    want = F.lp_pool2d(leaf, norm_type, *way)
    sent = rng.standard_normal(want.shape)
    (gradient,) = torch.autograd.grad(want, leaf, torch.from_numpy(sent))
    y, pullback = kernels.vjp("lp_pool2d", x, norm_type, *way, backend=backend)
    np.testing.assert_allclose(y, want.detach().numpy(), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(pullback(sent)[0], gradient.numpy(), rtol=1e-12, atol=1e-12)


def test_lp_window_that_sums_to_zero_passes_no_gradient(backend: str) -> None:
    x = np.zeros((1, 1, 2, 4), "float32")
    x[0, 0, 0, 2:] = (3, 4)
    y, pullback = kernels.vjp("lp_pool2d", x, 2, 2, backend=backend)
    assert y.ravel().tolist() == [0, 5]
    np.testing.assert_allclose(pullback(np.ones_like(y))[0][0, 0], [[0, 0, 0.6, 0.8], [0, 0, 0, 0]], rtol=1e-6)


def test_lp_window_cut_off_by_ceil_mode_counts_as_a_whole_one(backend: str) -> None:
    y = kernels.lp_pool2d(image([1, 1, 1]), 1, (1, 2), ceil_mode=True, backend=backend)
    assert y.ravel().tolist() == [2, 2]


# ----- dtypes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("name", ["torch", "reference"])
def test_max_of_integers(dtype: str, name: str) -> None:
    info = np.iinfo(dtype)
    x = np.random.default_rng(6).integers(info.min, info.max, (2, 3, 8, 9), dtype, endpoint=True)
    x[0] = info.min
    want, indices = F.max_pool2d(torch.from_numpy(x), 3, 2, 1, return_indices=True)
    y, found = kernels.max_pool2d(x, 3, 2, 1, return_indices=True, backend=name)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, want.numpy())
    np.testing.assert_array_equal(found, indices.numpy())


def test_integers_find_their_backend() -> None:
    x = np.arange(16, dtype="int32").reshape(1, 1, 4, 4)
    assert kernels.explain("max_pool2d", x, 2).chosen == "reference"
    assert kernels.explain("max_pool2d", torch.from_numpy(x), 2).chosen == "torch"
    with pytest.raises(kernels.BackendError, match="numba.*dtype int32"):
        kernels.max_pool2d(x, 2, backend="numba")


@pytest.mark.parametrize("name", ["torch", "reference"])
@pytest.mark.parametrize("divisor", [None, 3, -3])
def test_average_of_int64_is_rounded_towards_zero(name: str, divisor: int | None) -> None:
    x = np.random.default_rng(7).integers(-50, 50, (2, 3, 8, 9))
    want = F.avg_pool2d(torch.from_numpy(x), 3, 2, 1, divisor_override=divisor)
    y = kernels.avg_pool2d(x, 3, 2, 1, divisor_override=divisor, backend=name)
    np.testing.assert_array_equal(y, want.numpy())


@pytest.mark.parametrize("op", OPS)
def test_half_precision_sums_in_float32(op: str) -> None:
    x = (np.random.default_rng(8).standard_normal((1, 2, 32, 32)) * 30).astype("float16")
    arguments = OPS[op] | ({"kernel_size": 16} if "kernel_size" in OPS[op] else {})
    exact = getattr(kernels, op)(x.astype("float64"), backend="reference", **arguments)
    y = getattr(kernels, op)(x, backend="reference", **arguments)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, exact, rtol=2**-11, atol=1e-3)
    half = getattr(kernels, op)(torch.from_numpy(x).bfloat16(), backend="torch", **arguments)
    assert half.dtype == torch.bfloat16


# ----- forms of the arguments --------------------------------------------------------------------------------------


def test_forms_of_sizes(backend: str) -> None:
    x = np.random.default_rng(9).standard_normal((2, 3, 8, 9)).astype("float32")
    want = F.max_pool2d(torch.from_numpy(x), 2).numpy()
    for size in (2, (2,), [2], (2, 2), [2, 2], np.int64(2)):
        for stride in (None, (), [], 2, (2,), [2, 2]):
            np.testing.assert_array_equal(kernels.max_pool2d(x, size, stride, backend=backend), want)
            kernels.avg_pool2d(x, size, stride, backend=backend)
            kernels.lp_pool2d(x, 2, size, stride, backend=backend)
    assert kernels.max_pool2d(x, 3, 1, (1,), (2,), backend=backend).shape == (2, 3, 6, 7)
    sizes: list[Any] = [3, (3,), [3, 3], (3, None), (None, 2), (None, None), (20, 30)]
    for output_size, shape in zip(sizes, [(3, 3), (3, 3), (3, 3), (3, 9), (8, 2), (8, 9), (20, 30)]):
        for op in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
            assert getattr(kernels, op)(x, output_size, backend=backend).shape[2:] == shape


@pytest.mark.parametrize("op", OPS)
def test_one_image(backend: str, op: str) -> None:
    x = np.random.default_rng(10).standard_normal((3, 8, 9)).astype("float32")
    y = getattr(kernels, op)(x, backend=backend, **OPS[op])
    np.testing.assert_array_equal(y, getattr(kernels, op)(x[None], backend=backend, **OPS[op])[0])
    if "max" in op:
        pair = getattr(kernels, op)(torch.from_numpy(x), return_indices=True, backend=backend, **OPS[op])
        assert isinstance(pair, tuple) and pair[1].dtype == torch.int64 and pair[1].shape == y.shape


@pytest.mark.parametrize("op", OPS)
def test_channels_last_stays(backend: str, op: str) -> None:
    x = torch.randn(2, 5, 8, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = getattr(kernels, op)(x, backend=backend, **OPS[op])
    assert y.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(y.sum(), x)  # an expanded gradient comes in
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    plain = x.detach().contiguous().requires_grad_()
    z = getattr(kernels, op)(plain, backend=backend, **OPS[op])
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(gradient, torch.autograd.grad(z.sum(), plain)[0])


@pytest.mark.parametrize("op", OPS)
def test_any_strides(backend: str, op: str) -> None:
    base = np.random.default_rng(11).standard_normal((3, 9, 2, 16)).astype("float32")
    x = base.transpose(2, 0, 1, 3)[:, ::-1, :, ::2]
    y = getattr(kernels, op)(x, backend=backend, **OPS[op])
    np.testing.assert_array_equal(y, getattr(kernels, op)(np.ascontiguousarray(x), backend=backend, **OPS[op]))


@pytest.mark.parametrize("op", OPS)
def test_empty_batch(backend: str, op: str) -> None:
    x = torch.zeros(0, 3, 8, 8, requires_grad=True)
    y = getattr(kernels, op)(x, backend=backend, **OPS[op])
    assert y.shape[0] == 0
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


# ----- refusals ----------------------------------------------------------------------------------------------------

IMAGE = np.zeros((1, 2, 8, 9), "float32")
REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "max_pool2d",
        {"kernel_size": 3, "padding": 2},
        ValueError,
        r"padding must be at most half of kernel_size \(3, 3\), got",
    ),
    ("max_pool2d", {"kernel_size": 3, "padding": 2, "dilation": 3}, ValueError, "padding must be at most half"),
    ("max_pool2d", {"kernel_size": 10}, ValueError, r"kernel_size must fit .* got an output of 0 x 0"),
    ("max_pool2d", {"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
    ("max_pool2d", {"kernel_size": (2, 2, 2)}, ValueError, "kernel_size must be an int or a pair of ints"),
    ("max_pool2d", {"kernel_size": 2.0}, TypeError, "kernel_size must be an int"),
    ("max_pool2d", {"kernel_size": 2, "stride": 0}, ValueError, "stride must be at least 1, got 0"),
    ("max_pool2d", {"kernel_size": 2, "dilation": 0}, ValueError, "dilation must be at least 1"),
    ("max_pool2d", {"kernel_size": 2, "padding": -1}, ValueError, "padding must be at least 0"),
    ("max_pool2d", {"kernel_size": 2, "ceil_mode": 1}, TypeError, "ceil_mode must be True or False"),
    ("max_pool2d", {"kernel_size": 2, "return_indices": None}, TypeError, "return_indices must be True or False"),
    ("avg_pool2d", {"kernel_size": 3, "padding": 2}, ValueError, "padding must be at most half"),
    ("avg_pool2d", {"kernel_size": 2, "divisor_override": 0}, ValueError, "divisor_override must not be 0, got 0"),
    ("avg_pool2d", {"kernel_size": 2, "divisor_override": 1.5}, TypeError, "divisor_override must be an int"),
    ("avg_pool2d", {"kernel_size": 9, "stride": 1, "ceil_mode": True}, ValueError, "kernel_size must fit"),
    ("adaptive_avg_pool2d", {"output_size": -1}, ValueError, "output_size must be at least 0, got -1"),
    ("adaptive_avg_pool2d", {"output_size": (1, 2, 3)}, ValueError, "output_size must be an int or a pair"),
    ("adaptive_max_pool2d", {"output_size": None}, TypeError, "output_size must be an int or a pair"),
    ("adaptive_max_pool2d", {"output_size": ()}, ValueError, "output_size must be an int or a pair"),
    ("lp_pool2d", {"norm_type": 0, "kernel_size": 2}, ValueError, "norm_type must not be 0"),
    ("lp_pool2d", {"norm_type": "2", "kernel_size": 2}, TypeError, "norm_type must be a number"),
]


@pytest.mark.parametrize(("op", "arguments", "kind", "message"), REFUSED)
def test_refusals(op: str, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{op}: {message}"):
        getattr(kernels, op)(IMAGE, **arguments)


@pytest.mark.parametrize("op", OPS)
def test_refused_images(op: str) -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(N, C, H, W\) or \(C, H, W\), got 2 dimensions"):
        getattr(kernels, op)(IMAGE[0, 0], **OPS[op])
    with pytest.raises(ValueError, match="must not have a dimension of size 0"):
        getattr(kernels, op)(IMAGE[:, :, :0], **OPS[op])
    with pytest.raises(TypeError, match="x must have dtype"):
        getattr(kernels, op)(IMAGE.astype("complex64"), **OPS[op])
    if op != "adaptive_avg_pool2d":
        with pytest.raises(ValueError, match="must not have a dimension of size 0"):
            getattr(kernels, op)(IMAGE[:, :0], **OPS[op])
    else:
        assert kernels.adaptive_avg_pool2d(IMAGE[:, :0], 2).shape == (1, 0, 2, 2)


# ----- gradients of gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
def test_second_derivatives(backend: str, op: str) -> None:
    torch.manual_seed(0)
    x = (torch.rand(1, 2, 5, 6, dtype=torch.float64) + 0.5).requires_grad_()

    def run(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(kernels, op)(x, backend=backend, **OPS[op])
        return result

    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(run, x)
