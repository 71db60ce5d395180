"""The interpreter that the kernels are tested in: it must catch a planted fault of each kind, and know its numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.triton_interpreter import KernelFault, launch
from tests.support.triton_numbers import from_bfloat16, to_bfloat16, to_tf32
from tests.triton_on_cpu import kernels_with_faults as faults

N = 100


def run(kernel: Any, *arguments: Any, grid: int = 4, **options: Any) -> dict[str, int]:
    return launch(kernel, (grid,), arguments, options)


# ----- memory ------------------------------------------------------------------------------------------------------


def test_a_sound_kernel_runs_and_its_bytes_are_counted():
    x, y = torch.randn(N), torch.zeros(N)
    assert run(faults.copy, x, y, N, BLOCK=32) == {"load": 4 * N, "store": 4 * N, "atomic": 0}
    assert torch.equal(x, y)


@pytest.mark.parametrize(
    "kernel, message",
    [
        (faults.load_without_mask, r"out of bounds: load of 28 element\(s\) by program \(3, 0, 0\), byte 400 of 'x'"),
        (faults.store_without_mask, r"out of bounds: store of 28 element\(s\) by program \(3, 0, 0\), byte 400 of 'y'"),
        (faults.wrong_offset, r"out of bounds: load of 1 element\(s\) by program \(0, 0, 0\), byte -4 of 'x'"),
        (faults.overlapping_programs, r"race: programs \d and \d write the same of 'y'"),
        (faults.overlapping_lanes, r"race: program \(\d, 0, 0\) stores twice at once to an element of 'y'"),
        (faults.hands_on_without_barrier, r"race: program \(\d, 0, 0\) loads what it stored of 'y', with no barrier"),
        (faults.overwrites_what_it_loads, r"race: program \(\d, 0, 0\) stores to what it loaded of 'x', with no bar"),
        (faults.reads_its_neighbour, r"race: program \d (writes what another one has read|reads what \d wrote) of 'x'"),
    ],
)
def test_faults_are_caught(kernel: Any, message: str):
    # The memory goes on behind the arrays: only the checks can see where they end.
    x, y = torch.zeros(3 * N)[N : 2 * N], torch.zeros(3 * N)[N : 2 * N]
    with pytest.raises(KernelFault, match=message):
        run(kernel, x, y, N, BLOCK=32)


def test_values_are_handed_on_at_barriers():
    x, y = torch.arange(N, dtype=torch.float32), torch.zeros(N)
    run(faults.hands_on_at_barriers, x, y, N, BLOCK=32)
    assert torch.equal(y, torch.arange(N, dtype=torch.float32))
    assert torch.equal(x, y // 2 * 2)


def test_the_gaps_of_a_strided_array_are_not_its_own():
    x = torch.zeros(2 * N)[::2]
    with pytest.raises(KernelFault, match=r"out of bounds: load in a gap of the strided 'x' by program \(0, 0, 0\)"):
        run(faults.wrong_stride, x, torch.zeros(N), N, 2, grid=1, BLOCK=128)


def test_offsets_of_32_bits_are_caught():
    """The memory is never touched between the rows, so it costs nothing."""
    stride = 2**30 + 64
    x = torch.empty(2 * stride + N, dtype=torch.float16).as_strided((3, N), (stride, 1))
    for row in range(3):
        x[row] = row + 1
    y = torch.zeros(3, N, dtype=torch.float16)
    with pytest.raises(KernelFault, match=r"out of bounds: load of 100 element\(s\) by program \(2, 0, 0\)"):
        run(faults.short_offset, x, y, 3, stride, N, grid=3, BLOCK=128)
    y.zero_()
    run(faults.long_offset, x, y, 3, stride, N, grid=3, BLOCK=128)
    assert torch.equal(y, x)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_the_order_of_the_programs_may_be_any(seed: int | None):
    x, y = torch.randn(N), torch.zeros(N)
    launch(faults.copy, (4,), (x, y, N), {"BLOCK": 32}, seed)
    assert torch.equal(x, y)


# ----- numbers -----------------------------------------------------------------------------------------------------


def test_bfloat16_is_rounded_to_nearest_even_as_torch_does_it():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 2**32, 100_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    numbers[:4] = (np.inf, -np.inf, 0.0, -0.0)
    expected = torch.from_numpy(numbers).to(torch.bfloat16)
    found = torch.from_numpy(from_bfloat16(to_bfloat16(numbers)))
    assert torch.equal(torch.nan_to_num(found, nan=0.5), torch.nan_to_num(expected.float(), nan=0.5))
    assert torch.equal(found.isnan(), expected.isnan()) and bool(found.isnan().any())


def test_arithmetic_and_casts_of_bfloat16():
    """The stock interpreter computes on bit patterns and truncates."""
    x, y = torch.randn(N).bfloat16(), torch.randn(N).bfloat16()
    z = torch.zeros_like(x)
    run(faults.multiply_add, x, y, z, N, grid=1, BLOCK=128)
    assert torch.equal(z, x * y + x)
    wide = torch.randn(N)
    run(faults.convert, wide, z, N, grid=1, BLOCK=128)
    assert torch.equal(z, wide.bfloat16())
    back = torch.zeros(N)
    run(faults.convert, z, back, N, grid=1, BLOCK=128)
    assert torch.equal(back, z.float())
    both = torch.zeros(2, dtype=torch.bfloat16)
    run(faults.total, x, both, N, grid=1, BLOCK=128)
    assert abs(both[0].item() - x.float().sum().item()) <= 0.05 * x.float().abs().sum().item() ** 0.5
    assert both[1] == x.max()


def _product(dtype: torch.dtype, precision: str) -> float:
    """Largest error of a product in units of float32's rounding at the result's scale."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(s, generator=generator).to(dtype) for s in ((32, 64), (64, 16)))
    c = torch.zeros(32, 16)
    run(faults.product, a, b, c, grid=1, M=32, N=16, K=64, PRECISION=precision)
    exact = a.double() @ b.double()
    return float((c - exact).abs().max() / exact.abs().max() / 2.0**-24)


def test_products_have_the_precision_that_is_asked_for():
    assert _product(torch.float32, "ieee") < 16
    # Factors rounded to 11 bits: far from exact, and not as far as bfloat16's 8.
    assert 100 < _product(torch.float32, "tf32") < 16_000
    # Products of half precision are exact.
    assert _product(torch.float16, "tf32") < 16 and _product(torch.bfloat16, "tf32") < 16


def test_tf32_keeps_ten_bits_of_mantissa():
    numbers = np.float32([1 + 2.0**-10, 1 + 2.0**-12, 1 + 3 * 2.0**-11, -3.0, np.inf])
    np.testing.assert_array_equal(to_tf32(numbers), np.float32([1 + 2.0**-10, 1, 1 + 2.0**-9, -3, np.inf]))
    assert np.isnan(to_tf32(np.float32([np.nan])))[0]


def test_the_language_means_the_compiler_again_afterwards():
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    before = {part: dict(vars(part)) for part in (tl, tl.core, tl.math)}
    call = JITFunction.__call__
    x, y = torch.randn(N), torch.zeros(N)
    run(faults.copy, x, y, N, BLOCK=32)
    with pytest.raises(KernelFault):
        run(faults.load_without_mask, x, y, N, BLOCK=32)
    for part, names in before.items():
        assert {n for n, v in vars(part).items() if names.get(n) is not v} <= {
            "interpreter_semantic",
            "interpreter_builder",
        }
    assert JITFunction.__call__ is call
