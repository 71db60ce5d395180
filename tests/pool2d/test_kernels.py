"""The CPU kernels themselves: which one runs, every part of its range, any number of threads, no memory but its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.pool2d import (
    any_window,
    column_planes,
    gradients,
    narrow_planes,
    passes_cpu,
    planes,
    whole_argmax,
    whole_planes,
)
from kernels.simd import VECTOR_BYTES
from kernels.simd.target import TARGET
from tests.support import memory

KERNELS = [
    (planes, "pool_planes"),
    (whole_planes, "pool_planes"),
    (whole_argmax, "argmax_planes_known"),
    (planes, "argmax_planes_known"),
    (planes, "argmax_planes"),
    (narrow_planes, "pool_pairs"),
    (column_planes, "max_columns"),
    (any_window, "sum_planes"),
    (any_window, "sum_narrow_planes"),
    (any_window, "max_planes"),
    (any_window, "argmax_planes"),
    (any_window, "sum_channels"),
    (any_window, "max_channels"),
    (any_window, "argmax_channels"),
    (gradients, "spread_planes"),
    (gradients, "spread_channels"),
    (gradients, "gather_planes"),
    (gradients, "gather_channels"),
]
#: What runs windows that the compiler knows.
KNOWN = "planes.pool_planes" if TARGET.has_avx512 else "whole_planes.pool_planes"
KNOWN_ARGMAX = "planes.argmax_planes_known" if TARGET.has_avx512 else "whole_argmax.argmax_planes_known"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that ran, in order."""
    names: list[str] = []
    for module, name in KERNELS:
        kernel = getattr(module, name)

        def run(*arguments: Any, kernel: Any = kernel, label: str = f"{module.__name__[15:]}.{name}") -> None:
            names.append(label)
            kernel(*arguments)

        monkeypatch.setattr(module, name, run)
    return names


def _image(*shape: int, last: bool = False, dtype: str = "float32") -> np.ndarray:
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if last else x


@pytest.mark.parametrize("kernel_stride", passes_cpu.KNOWN)
def test_known_shapes(ran: list[str], kernel_stride: Any) -> None:
    (kernel, stride), x = kernel_stride, _image(1, 2, 9, 35)
    kernels.max_pool2d(x, kernel, stride, backend="numba")
    kernels.max_pool2d(x, kernel, stride, return_indices=True, backend="numba")
    kernels.avg_pool2d(x, kernel, stride, backend="numba")
    kernels.lp_pool2d(x, 2, kernel, stride, backend="numba")
    assert ran == [KNOWN, KNOWN_ARGMAX, KNOWN, KNOWN]


def test_other_shapes(ran: list[str]) -> None:
    x, last = _image(1, 2, 9, 9), _image(1, 2, 9, 9, last=True)
    kernels.max_pool2d(x, 3, 1, dilation=2, backend="numba")
    kernels.max_pool2d(x, (3, 2), 2, backend="numba")
    kernels.max_pool2d(x, 3, backend="numba")
    kernels.adaptive_max_pool2d(x, 2, return_indices=True, backend="numba")
    kernels.avg_pool2d(x, 3, backend="numba")
    kernels.adaptive_avg_pool2d(x, 5, backend="numba")
    assert ran == [
        *["planes.argmax_planes"] * 2,
        "any_window.max_planes",
        "any_window.argmax_planes",
        *["any_window.sum_narrow_planes"] * 2,
    ]
    ran.clear()
    kernels.adaptive_avg_pool2d(_image(1, 2, 8, 40), (4, 20), backend="numba")
    kernels.adaptive_avg_pool2d(_image(1, 2, 8, 36), 2, backend="numba")
    kernels.avg_pool2d(_image(1, 2, 20, 20), 17, backend="numba")
    assert ran == [KNOWN, "any_window.sum_planes", "any_window.sum_planes"]
    ran.clear()
    kernels.max_pool2d(last, 2, backend="numba")
    kernels.max_pool2d(last, 2, return_indices=True, backend="numba")
    kernels.avg_pool2d(last, 2, backend="numba")
    assert ran == ["any_window.max_channels", "any_window.argmax_channels", "any_window.sum_channels"]


def test_narrow_planes_and_columns(ran: list[str]) -> None:
    lanes = VECTOR_BYTES // 4
    x = _image(3, 2, 9, lanes - 1)
    kernels.max_pool2d(x, 2, backend="numba")
    kernels.avg_pool2d(x, 2, backend="numba")
    kernels.lp_pool2d(x, 2, 2, backend="numba")
    kernels.adaptive_avg_pool2d(x[..., :8, : lanes - 2], (4, lanes // 2 - 1), backend="numba")
    assert ran == ["narrow_planes.pool_pairs"] * 4
    ran.clear()
    kernels.max_pool2d(x, (3, 1), (2, 1), (1, 0), (2, 1), backend="numba")
    assert ran == ["column_planes.max_columns"]
    ran.clear()
    # What they leave to others: places, divisors of one's own, windows that reach out, two vectors of inputs.
    kernels.max_pool2d(x, 2, return_indices=True, backend="numba")
    kernels.max_pool2d(x, (3, 1), return_indices=True, backend="numba")
    kernels.avg_pool2d(x, 2, divisor_override=3, backend="numba")
    kernels.avg_pool2d(x, 2, ceil_mode=True, backend="numba")
    kernels.max_pool2d(x, 2, padding=1, backend="numba")
    kernels.max_pool2d(_image(1, 2, 9, lanes + 2), 2, backend="numba")
    assert ran == [KNOWN_ARGMAX, "planes.argmax_planes", *[KNOWN] * 4]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 3, h, w) for h in (2, 3, 6, 7) for w in (2, 3, 7, 8, 14, 16, 17)])
def test_narrow_planes(ran: list[str], shape: tuple[int, ...], dtype: str) -> None:
    """Every number of rows and columns that a vector holds; equal inputs, zeros of both signs, NaN in some planes."""
    rng = np.random.default_rng(sum(shape))
    x = rng.choice([-2.0, -0.0, 0.0, 1.0, np.inf], shape).astype(dtype)
    x[1][rng.random(shape[1:]) < 0.05] = np.nan
    want = F.max_pool2d(torch.from_numpy(x), 2).numpy()
    found = kernels.max_pool2d(x, 2, backend="numba")
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(np.signbit(found)[~np.isnan(found)], np.signbit(want)[~np.isnan(want)])
    mean = kernels.avg_pool2d(x, 2, backend="numba")
    np.testing.assert_array_equal(mean, F.avg_pool2d(torch.from_numpy(x), 2).numpy())
    fits = 2 * (shape[3] // 2) * x.itemsize <= VECTOR_BYTES
    assert ran == ["narrow_planes.pool_pairs" if fits else KNOWN] * 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", [(2, 2, 0, 1), (3, 1, 1, 1), (3, 2, 1, 2), (2, 3, 1, 4), (1, 2, 0, 1)])
def test_columns(ran: list[str], way: tuple[int, ...], dtype: str) -> None:
    """Windows of one column: all kinds of rows, widths on both sides of a vector's."""
    height, stride, padding, dilation = way
    for width in (1, 7, 8, 15, 16, 17, 40):
        rng = np.random.default_rng(width)
        x = rng.choice([-np.inf, -2.0, -0.0, 0.0, 1.0, np.nan], (2, 3, 11, width), p=[0.2] * 4 + [0.15, 0.05])
        x = x.astype(dtype)
        form = ((height, 1), (stride, 1), (padding, 0), (dilation, 1))
        want = F.max_pool2d(torch.from_numpy(x), *form).numpy()
        found = kernels.max_pool2d(x, *form, backend="numba")
        np.testing.assert_array_equal(found, want)
        np.testing.assert_array_equal(np.signbit(found)[~np.isnan(found)], np.signbit(want)[~np.isnan(want)])
    assert set(ran) == {"column_planes.max_columns"}


@pytest.mark.parametrize("last", [False, True])
def test_backward_kernels(ran: list[str], last: bool) -> None:
    x = _image(1, 2, 9, 9, last=last)
    for op, kernel in (("max_pool2d", "spread"), ("avg_pool2d", "gather"), ("lp_pool2d", "gather")):
        y, pullback = kernels.vjp(op, x, *((2, 3) if op == "lp_pool2d" else (3,)), backend="numba")
        pullback(np.ones_like(y))
        assert ran[-1] == f"gradients.{kernel}_{'channels' if last else 'planes'}"


def test_explain_names_the_kernel() -> None:
    def described(op: str, x: np.ndarray, **arguments: Any) -> str:
        return next(line for line in str(kernels.explain(op, x, **arguments)).split("\n") if " numba " in line)

    x = _image(1, 2, 9, 9)
    assert "2 x 2 stride 2, vectors along" in described("max_pool2d", _image(1, 2, 9, 40), kernel_size=2)
    assert "two rows in a vector" in described("max_pool2d", x[..., : VECTOR_BYTES // 4 - 1], kernel_size=2)
    assert "columns" in described("max_pool2d", x, kernel_size=(2, 1))
    assert "any kernel" in described("max_pool2d", x, kernel_size=3, stride=1, dilation=2)
    assert "rows first" in described("avg_pool2d", x, kernel_size=3)
    assert "one at a time" in described("avg_pool2d", _image(1, 2, 20, 20), kernel_size=17)
    assert "2 x 2 stride 2" in described("adaptive_avg_pool2d", _image(1, 2, 8, 10), output_size=(4, 5))
    assert "rows first" in described("adaptive_max_pool2d", x, output_size=4)
    assert "channels" in described("avg_pool2d", _image(1, 2, 9, 9, last=True), kernel_size=4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 1), (5, 1, 2)])
def test_planes_of_several_strips(way: tuple[int, int, int], dtype: str) -> None:
    """Planes larger than a strip: rows shared between strips, NaN in one strip alone."""
    x = _image(1, 2, 203, 131, dtype=dtype)
    assert x[0, 0].nbytes // passes_cpu.STRIP_BYTES > 1
    for row in (None, 0, 101, 202):
        if row is not None:
            x[0, 1, row, 77] = np.nan
        want, indices = F.max_pool2d(torch.from_numpy(x), *way, return_indices=True)
        np.testing.assert_array_equal(kernels.max_pool2d(x, *way, backend="numba"), want.numpy())
        found = kernels.max_pool2d(x, *way, return_indices=True, backend="numba")
        np.testing.assert_array_equal(found[0], want.numpy())
        np.testing.assert_array_equal(found[1], indices.numpy())
        mean = F.avg_pool2d(torch.from_numpy(x), *way).numpy()
        np.testing.assert_allclose(kernels.avg_pool2d(x, *way, backend="numba"), mean, rtol=1e-5, atol=1e-6)


CALLS: list[tuple[str, dict[str, Any]]] = [
    ("max_pool2d", {"kernel_size": 2, "return_indices": True}),
    ("max_pool2d", {"kernel_size": 2}),
    ("max_pool2d", {"kernel_size": (3, 1), "stride": (2, 1), "padding": (1, 0)}),
    ("max_pool2d", {"kernel_size": 3, "stride": 1, "padding": 1}),
    ("max_pool2d", {"kernel_size": 3, "stride": 2, "dilation": 2}),
    ("max_pool2d", {"kernel_size": 3, "stride": 3}),
    ("avg_pool2d", {"kernel_size": 2}),
    ("avg_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("avg_pool2d", {"kernel_size": 5, "stride": 2}),
    ("adaptive_avg_pool2d", {"output_size": (3, 5)}),
    ("adaptive_max_pool2d", {"output_size": (3, 5)}),
    ("lp_pool2d", {"norm_type": 2, "kernel_size": 2}),
    ("lp_pool2d", {"norm_type": 3, "kernel_size": 3}),
    ("lp_pool2d", {"norm_type": float("inf"), "kernel_size": 2}),
]


def _all_bits(op: str, x: np.ndarray, arguments: dict[str, Any]) -> list[bytes]:
    result, pullback = kernels.vjp(op, x, backend="numba", **arguments)
    output = result[0] if isinstance(result, tuple) else result
    sent = np.random.default_rng(1).standard_normal(output.shape).astype(x.dtype)
    plain = getattr(kernels, op)(x, backend="numba", **arguments)
    found = [*(result if isinstance(result, tuple) else (result,)), *pullback(sent)]
    found += plain if isinstance(plain, tuple) else [plain]
    return [np.ascontiguousarray(f).tobytes() for f in found]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("op", "arguments"), CALLS)
def test_same_bits_for_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, op: str, arguments: dict[str, Any], last: bool
) -> None:
    x = _image(3, 37, 15, 14, last=last)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(passes_cpu, "threads_for", lambda work, grain, threads=threads: threads)
        found.append(_all_bits(op, x, arguments))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("where", ["end", "start"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("op", "arguments"), CALLS)
def test_no_memory_but_its_own(op: str, arguments: dict[str, Any], last: bool, where: Any) -> None:
    """Pages that trap around every array; sizes on both sides of a vector's."""
    for width in (5, 15, 16, 17, 33):
        x = _image(1, 2, 7, width, last=last) if not last else _image(1, width, 7, 6, last=True)
        expected = _all_bits(op, x, arguments)
        with memory.allocator(memory.guarded_allocator(where)):
            assert _all_bits(op, memory.guarded_copy(x, where), arguments) == expected


def test_planes_past_32_bit_indices_are_left_to_others() -> None:
    x = np.lib.stride_tricks.as_strided(np.zeros(1, "float32"), (1, 1, 2**16, 2**15), (0, 0, 0, 0))
    explained = kernels.explain("max_pool2d", x, 2, return_indices=True)
    assert explained.chosen == "reference" and "32-bit indices" in str(explained)
    assert kernels.explain("max_pool2d", x, 2).chosen == "numba"
    assert kernels.explain("max_pool2d", x[:, :, : 2**15], 2, return_indices=True).chosen == "numba"


@pytest.mark.parametrize("where", ["end", "start"])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("kernel_stride", passes_cpu.KNOWN)
def test_known_windows_of_any_width(kernel_stride: Any, padding: int, where: memory.Where) -> None:
    """Widths around those of vectors, few rows: values, signs and places, in memory that ends where the arrays do."""
    (kernel, stride), rng = kernel_stride, np.random.default_rng(padding)
    for width in (*range(3, 37), 63, 64, 65, 66):
        for height, dtype in ((3, "float32"), (4, "float32"), (6, "float64"), (7, "float32")):
            x = rng.choice([-2.0, -0.0, 0.0, 1.0, -np.inf], (3, 1, height, width)).astype(dtype)
            x[1][rng.random(x.shape[1:]) < 0.05] = np.nan
            given = torch.from_numpy(x)
            want, places = (t.numpy() for t in F.max_pool2d(given, kernel, stride, padding, return_indices=True))
            with memory.allocator(memory.guarded_allocator(where)):
                copy = memory.guarded_copy(x, where)
                alone = kernels.max_pool2d(copy, kernel, stride, padding, backend="numba")
                found, indices = kernels.max_pool2d(copy, kernel, stride, padding, return_indices=True, backend="numba")
                mean = kernels.avg_pool2d(copy, kernel, stride, padding, backend="numba")
            for values in (alone, found):
                np.testing.assert_array_equal(values, want)
                known = ~np.isnan(want)
                np.testing.assert_array_equal(np.signbit(values)[known], np.signbit(want)[known])
            np.testing.assert_array_equal(indices, places)
            np.testing.assert_allclose(mean, F.avg_pool2d(given, kernel, stride, padding).numpy(), rtol=1e-6, atol=1e-6)
