"""Values, indices and gradients of every backend against torch, over the cases and over random calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.case import Case
from kernels.pool2d.cases import CASES

BACKENDS = ("numba", "torch", "reference")
SMALL = [case for case in CASES if "bench" not in case.tags]
ROUNDING = {"float32": 2e-6, "float64": 1e-14}


def stock(op: str, x: np.ndarray, gradient_seed: int, **arguments: Any) -> tuple[Any, ...]:
    """torch's (output, indices or None, gradient sent back, gradient of x) as NumPy."""
    leaf = torch.from_numpy(x.copy(order="K")).requires_grad_()
    result = getattr(torch.nn.functional, op)(leaf, **arguments)
    output, indices = result if isinstance(result, tuple) else (result, None)
    sent = np.random.default_rng(gradient_seed).standard_normal(output.shape).astype(x.dtype)
    if output.numel():
        (found,) = torch.autograd.grad(output, leaf, torch.from_numpy(sent))
    else:
        found = torch.zeros_like(leaf)
    return output.detach().numpy(), None if indices is None else indices.numpy(), sent, found.numpy()


def compare(op: str, x: np.ndarray, backend: str, seed: int = 0, **arguments: Any) -> None:
    """Hold one call, with and without gradients, to torch's."""
    output, indices, sent, gradient = stock(op, x, seed, **arguments)
    trained, pullback = kernels.vjp(op, x, backend=backend, **arguments)
    plain = getattr(kernels, op)(x, backend=backend, **arguments)
    if indices is not None:
        for found in (trained, plain):
            assert found[1].dtype == np.int64
            np.testing.assert_array_equal(found[1], indices)
        trained, plain = trained[0], plain[0]
    assert plain.dtype == x.dtype
    np.testing.assert_array_equal(trained, plain)
    tolerance = ROUNDING[x.dtype.name]
    exact = "max" in op
    scale = float(np.max(np.abs(output[np.isfinite(output)]), initial=1.0))
    np.testing.assert_allclose(plain, output, rtol=0 if exact else tolerance, atol=0 if exact else tolerance * scale)
    (dx,) = pullback(sent)
    scale = float(np.max(np.abs(gradient[np.isfinite(gradient)]), initial=1.0))
    np.testing.assert_allclose(dx.reshape(x.shape), gradient, rtol=4 * tolerance, atol=4 * tolerance * scale)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_case(case: Case, backend: str, dtype: str) -> None:
    arguments = case.build(dtype)
    compare(case.op, arguments.pop("x"), backend, **arguments)


def _image(rng: np.random.Generator, dtype: str, last: bool) -> np.ndarray:
    shape = [int(rng.integers(1, high)) for high in (3, 6, 24, 75)]
    if last:
        shape[1:] = [int(rng.integers(2, high)) for high in (40, 14, 14)]
    x = rng.standard_normal(shape).astype(dtype)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if last else x


def _sliding(rng: np.random.Generator, x: np.ndarray, dilated: bool) -> dict[str, Any]:
    """Random kernel, stride, padding (and dilation) that fit x."""
    size = x.shape[2:]
    known = rng.random() < 0.5
    kernel = [min(int(rng.integers(2, 4) if known else rng.integers(1, 7)), n) for n in size]
    stride = [int(rng.integers(1, 3))] * 2 if known else [int(s) for s in rng.integers(1, 5, 2)]
    if known:
        kernel = [min(kernel)] * 2
    arguments: dict[str, Any] = {
        "kernel_size": tuple(kernel),
        "stride": tuple(stride),
        "ceil_mode": bool(rng.integers(2)),
        "padding": tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel),
    }
    if dilated:
        reach = [n + 2 * p for n, p in zip(size, arguments["padding"])]
        # A tap inside the image always: of a window without one torch says an index of another row or plane.
        reach = [min(r, n) for r, n in zip(reach, size)]
        most = [1 if k == 1 else max((r - 1) // (k - 1), 1) for r, k in zip(reach, kernel)]
        arguments["dilation"] = 1 if known else tuple(int(rng.integers(1, min(m, 3) + 1)) for m in most)
    return arguments


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("seed", range(60))
def test_random_max_pool2d(seed: int, backend: str) -> None:
    rng = np.random.default_rng(seed)
    x = _image(rng, ("float32", "float64")[seed % 2], last=seed % 5 == 0)
    # Few different values: ties everywhere, windows of -inf alone, zeros of both signs.
    x[...] = rng.choice([-np.inf, -2, -1, -0.0, 0.0, 1, 2, np.inf], x.shape)
    x[rng.random(x.shape) < 0.1 * (seed % 3 == 0)] = np.nan
    arguments = _sliding(rng, x, dilated=True)
    _same_maxima("max_pool2d", x, backend, **arguments)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("seed", range(20))
def test_random_adaptive_max_pool2d(seed: int, backend: str) -> None:
    rng = np.random.default_rng(seed)
    x = _image(rng, ("float32", "float64")[seed % 2], last=seed % 3 == 0)
    x[...] = rng.choice([-np.inf, -2, -1, -0.0, 0.0, 1, 2, np.inf], x.shape)
    x[rng.random(x.shape) < 0.05 * (seed % 4 == 0)] = np.nan
    _same_maxima("adaptive_max_pool2d", x, backend, output_size=tuple(int(n) for n in rng.integers(1, 9, 2)))


def _same_maxima(op: str, x: np.ndarray, backend: str, **arguments: Any) -> None:
    """Values (signs of zeros included) and indices are torch's, bit for bit."""
    want, want_indices = getattr(torch.nn.functional, op)(
        torch.from_numpy(x.copy(order="K")), return_indices=True, **arguments
    )
    got, indices = getattr(kernels, op)(x, return_indices=True, backend=backend, **arguments)
    alone = getattr(kernels, op)(x, backend=backend, **arguments)
    np.testing.assert_array_equal(indices, want_indices.numpy())
    for found in (got, alone):
        np.testing.assert_array_equal(found, want.numpy())
        number = ~np.isnan(found)
        np.testing.assert_array_equal(np.signbit(found)[number], np.signbit(want.numpy())[number])


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("seed", range(40))
def test_random_avg_pool2d(seed: int, backend: str) -> None:
    rng = np.random.default_rng(seed)
    x = _image(rng, ("float32", "float64")[seed % 2], last=seed % 5 == 0)
    arguments = _sliding(rng, x, dilated=False)
    arguments["count_include_pad"] = bool(rng.integers(2))
    arguments["divisor_override"] = None if rng.integers(3) else int(rng.integers(1, 9))
    compare("avg_pool2d", x, backend, **arguments)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("seed", range(20))
def test_random_adaptive_avg_pool2d(seed: int, backend: str) -> None:
    rng = np.random.default_rng(seed)
    x = _image(rng, ("float32", "float64")[seed % 2], last=seed % 3 == 0)
    compare("adaptive_avg_pool2d", x, backend, output_size=tuple(int(n) for n in rng.integers(1, 9, 2)))


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("norm_type", [1, 2, 3, 0.5, 1.5, -1, -2, float("inf"), -float("inf")])
@pytest.mark.parametrize("last", [False, True])
def test_lp_pool2d_norms(norm_type: float, last: bool, backend: str) -> None:
    """Positive inputs, where every p has its root and derivative; the rest is in test_semantics."""
    rng = np.random.default_rng(3)
    x = (np.abs(_image(rng, "float64", last)) + 0.1).astype("float64")
    if last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for arguments in ({"kernel_size": 2}, {"kernel_size": (2, 3), "stride": (3, 1), "ceil_mode": True}):
        compare("lp_pool2d", x, backend, norm_type=norm_type, **arguments)
