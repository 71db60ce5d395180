"""conv2d and conv_transpose2d in Triton, executed on the CPU: bounds and races watched, programs in random order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.case import Case
from kernels.conv2d.gpu_tiles import LEAST_PART, ConvTile, conv_tile, parts_of_pixels
from kernels.runtime.row_tiles import power_of_two
from kernels.runtime.targets import TARGETS
from kernels.runtime.tuning import use_tile
from tests.support import layouts, matrix, oracle
from tests.support.triton_interpreter import SMALL, on_cpu
from tests.triton_on_cpu import helpers
from tests.triton_on_cpu.helpers import report

OPS = ("conv2d", "conv_transpose2d")
CASES = helpers.small_cases(*OPS)
H100 = TARGETS["sm_90"]


@contextmanager
def torch_set_to(tf32: bool) -> Iterator[None]:
    """torch's own setting for float32 convolutions."""
    # By the context manager: torch's own test helpers forbid to set the flag.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
        yield


@pytest.fixture(autouse=True)
def ieee() -> Iterator[None]:
    with torch_set_to(False):
        yield


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_cases(case: Case, dtype: str):
    with on_cpu():
        report(helpers.complaints(case, dtype))


@pytest.mark.parametrize("dtype", helpers.HALVES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_cases_in_half_precision(case: Case, dtype: torch.dtype):
    with on_cpu():
        report(helpers.tensor_complaints(case, dtype))


@pytest.mark.parametrize("layout", layouts.TORCH_LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_any_layout(op: str, layout: str):
    for case in matrix.cases_of(op, "ci")[:2]:
        helpers.check_layout(case, layout)


@pytest.mark.parametrize("name", ["3x3 same relu", "depthwise silu", "groups 3 gelu"])
def test_results_do_not_depend_on_the_order_of_the_programs(name: str):
    (case,) = [c for c in matrix.cases_of("conv2d", "ci") if c.name == name]
    helpers.check_order(case)


# ----- precision ---------------------------------------------------------------------------------------------------


def _errors(arguments: dict[str, Any]) -> list[float]:
    """Largest error of the result and of each gradient, relative to their largest number."""
    expected = oracle.expect("conv2d", arguments)
    with on_cpu():
        found = oracle.with_autograd("conv2d", arguments, expected.incoming, "triton")
    pairs = [(found.results[0], expected.exact.results[0])]
    pairs += [(found.gradients[n], e) for n, e in expected.exact.gradients.items() if n != "bias"]
    return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]


def test_float32_is_multiplied_as_torch_is_set():
    """tf32 keeps 11 bits of each factor: errors of some 2**-11, and far more than float32's."""
    arguments = {"x": helpers.numbers(2, 32, 7, 8), "weight": helpers.numbers(16, 32, 3, 3, seed=1), "padding": 1}
    assert max(_errors(arguments)) < 2e-6
    with torch_set_to(True):
        errors = _errors(arguments)
    assert all(2e-5 < e < 2e-3 for e in errors), errors


# ----- every tile, every form --------------------------------------------------------------------------------------


def _tiles() -> list[ConvTile]:
    """Every tile that `conv_tile` gives, on any target."""
    sizes = (1, 16, 17, 40, 64, 100, 5000, 10**6)
    found = {
        conv_tile(rows, columns, inner, itemsize, target, tensor_cores=cores, vectors=vectors, across=across)
        for rows in sizes for columns in sizes for inner in (3, 16, 27, 64, 1000) for target in TARGETS.values()
        for itemsize, cores in ((2, True), (4, True), (4, False), (8, False)) for vectors in (False, True)
        for across in (False, True)
    }  # fmt: skip
    return sorted(found, key=lambda t: (t.rows, t.columns, t.inner, t.warps, t.stages))


def _shapes() -> list[tuple[int, int, int]]:
    return sorted({(t.rows, t.columns, t.inner) for t in _tiles()})


@pytest.mark.parametrize("shape", _shapes(), ids=lambda s: "x".join(map(str, s)))
def test_every_tile(shape: tuple[int, int, int]):
    """Channels one more than a tile's, pixels a few more, a step across the end of a part."""
    rows, columns, inner = shape
    channels, outputs = min(inner, 32) + 1, min(columns, 64) + 1
    width = 5 if rows < 64 else 11
    arguments = {
        "x": helpers.numbers(2, channels, 6, width),
        "weight": helpers.numbers(outputs, channels, 2, 3, seed=1) / np.float32(channels**0.5),
        "bias": helpers.numbers(outputs, seed=2),
        "stride": (2, 1),
        "padding": 1,
        "activation": "relu",
    }
    expected = oracle.expect("conv2d", arguments)
    with on_cpu(seed=1), use_tile(ConvTile(rows, columns, inner, 4, 2)):
        report(expected.complaints(oracle.with_autograd("conv2d", arguments, expected.incoming, "triton")))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("channels", [(6, 9, 3), (40, 24, 1), (34, 40, 2), (8, 16, 8)])
@pytest.mark.parametrize(
    "window",
    [
        {"stride": (3, 2), "dilation": (2, 4), "padding": (3, 5)},
        {"stride": (2, 4), "dilation": (3, 1), "padding": ((0, 2), (3, 1))},
    ],
    ids=["stride 3x2", "stride 2x4"],
)
def test_strides_and_dilations(window: dict[str, Any], channels: tuple[int, int, int], last: bool):
    """Phases of the data gradient with several taps, with one, and with none."""
    inputs, outputs, groups = channels
    x, weight = helpers.numbers(2, inputs, 13, 14), helpers.numbers(outputs, inputs // groups, 3, 2, seed=1)
    if last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    expected = oracle.expect("conv2d", {"x": x, "weight": weight, "groups": groups, **window})
    with on_cpu():
        found = oracle.with_autograd("conv2d", expected.arguments, expected.incoming, "triton")
    report(expected.complaints(found))


def test_a_weights_gradient_is_summed_over_several_parts():
    arguments = {"x": helpers.numbers(2, 3, 20, 30), "weight": helpers.numbers(4, 3, 3, 3, seed=1), "padding": 1}
    assert parts_of_pixels(1200, 1, SMALL)[0] > 1
    expected = oracle.expect("conv2d", arguments)
    with on_cpu() as launched:
        found = oracle.with_autograd("conv2d", arguments, expected.incoming, "triton")
    report(expected.complaints(found))
    assert launched == ["convolve", "convolve", "weight_gradient_of_parts", "sum_parts"]


def test_the_kernels_that_run_are_these():
    names = {}
    for groups in (1, 6):
        x, weight = torch.randn(1, 6, 5, 5, requires_grad=True), torch.randn(6, 6 // groups, 3, 3, requires_grad=True)
        bias = torch.zeros(6, requires_grad=True)
        with on_cpu() as launched:
            y = kernels.conv2d(x, weight, bias, groups=groups, activation="tanh", backend="triton")
            torch.autograd.grad(y.sum(), (x, weight, bias))
        names[groups] = launched
    assert names[1] == [
        "convolve", "activation_gradient_elements", "convolve", "weight_gradient_of_parts", "sum_parts",
        "sums_of_pixels", "sum_parts",
    ]  # fmt: skip
    assert names[6] == [
        "convolve_depthwise", "activation_gradient_elements", "spread_depthwise", "sums_of_pixels", "sum_parts",
        "sums_of_pixels", "sum_parts",
    ]  # fmt: skip


@pytest.mark.parametrize("groups", [1, 3])
def test_offsets_beyond_32_bits(groups: int):
    """Images 2**30 elements apart; the memory between them is never touched."""
    stride = 2**30 + 64
    x = torch.empty(2 * stride + 60, dtype=torch.float16).as_strided((3, 3, 4, 5), (stride, 20, 5, 1))
    x.copy_(torch.from_numpy(helpers.numbers(3, 3, 4, 5)))
    weight = torch.from_numpy(helpers.numbers(3, 3 // groups, 2, 2, seed=1)).half().requires_grad_()
    answers = []
    with on_cpu():
        for given in (x.contiguous(), x):
            y = kernels.conv2d(given, weight, groups=groups, backend="triton")
            answers.append((y, *torch.autograd.grad(y.float().square().sum(), weight)))
    for a, b in zip(*answers, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("groups", [1, 3])
def test_infinite_weights_do_not_reach_the_padding(groups: int):
    weight = torch.full((3, 3 // groups, 3, 3), 1.0)
    weight[..., 0, 0] = float("inf")
    with on_cpu():
        y = kernels.conv2d(torch.ones(1, 3, 4, 4), weight, padding=1, groups=groups, backend="triton")
    assert torch.isinf(y[..., 1:, 1:]).all()


# ----- choices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes, itemsize, cores, vectors, target, expected",
    [
        ((100_352, 64, 64), 2, True, True, "sm_90", ConvTile(128, 64, 64, 4, 3)),
        ((100_352, 256, 64), 2, True, True, "sm_90", ConvTile(128, 128, 64, 8, 3)),
        ((100_352, 256, 64), 2, True, True, "sm_80", ConvTile(128, 128, 64, 8, 3)),
        ((100_352, 256, 64), 4, True, True, "sm_100", ConvTile(128, 128, 32, 8, 4)),
        ((1568, 512, 512), 2, True, True, "sm_90", ConvTile(64, 128, 64, 4, 3)),  # idle multiprocessors
        ((100_352, 256, 64), 4, False, True, "sm_90", ConvTile(64, 64, 16, 4, 2)),
        ((100_352, 256, 64), 2, True, False, "sm_90", ConvTile(64, 64, 32, 4, 1)),
        ((100_352, 256, 64), 4, True, False, "sm_90", ConvTile(64, 64, 16, 4, 2)),
        ((100_352, 256, 64), 4, True, True, "gfx942", ConvTile(128, 128, 32, 4, 2)),
        ((20, 3, 27), 2, True, False, "sm_90", ConvTile(32, 16, 32, 4, 1)),
    ],
)
def test_tiles(sizes: Any, itemsize: int, cores: bool, vectors: bool, target: str, expected: ConvTile):
    assert conv_tile(*sizes, itemsize, TARGETS[target], tensor_cores=cores, vectors=vectors) == expected


def test_sums_across_memory_have_tiles_of_their_own():
    def of(itemsize: int, target: str) -> ConvTile:
        return conv_tile(
            512, 4608, 10**5, itemsize, TARGETS[target], tensor_cores=True, vectors=True, across=True
        )  # fmt: skip

    assert of(2, "sm_90") == ConvTile(64, 64, 128, 4, 3)
    assert of(4, "sm_90") == ConvTile(128, 128, 32, 8, 1)
    small = conv_tile(64, 576, 10**5, 2, TARGETS["sm_100"], tensor_cores=True, vectors=True, across=True)
    assert small == ConvTile(64, 128, 64, 8, 4)


def test_every_tile_is_sound():
    tiles = _tiles()
    assert len(tiles) > 30
    for t in tiles:
        assert all(n == power_of_two(n) for n in (t.rows, t.columns, t.inner, t.warps))
        assert all(16 <= n <= 128 for n in (t.rows, t.columns, t.inner))
        # Stages of both factors, of at most 128 bytes a row, fit an A100's shared memory.
        assert t.stages * (t.rows + t.columns) * 128 <= TARGETS["sm_80"].block_shared


@pytest.mark.parametrize("pixels", [1, 511, 512, 513, 10_000, 401_408, 10**8])
@pytest.mark.parametrize("tiles", [1, 9, 300])
def test_parts_cover_the_pixels_once(pixels: int, tiles: int):
    parts, part = parts_of_pixels(pixels, tiles, H100)
    assert parts * part >= pixels > (parts - 1) * part and part % 128 == 0
    assert parts == 1 or (part >= LEAST_PART and tiles * (parts - 1) < 2 * H100.multiprocessors)


def test_what_a_launch_does_not_hold_is_a_reason():
    x, weight = torch.zeros(1, 1, 300, 300), torch.zeros(1, 1, 1, 1)
    message = r"stride is \(256, 256\); a launch holds 65535 of its phases"
    with on_cpu(), pytest.raises(kernels.BackendError, match=message):
        kernels.conv2d(x, weight, stride=256, backend="triton")


def test_explain_names_the_kernel():
    with on_cpu():
        dense = str(kernels.explain("conv2d", torch.zeros(1, 32, 5, 5), torch.zeros(8, 32, 3, 3)))
        few = str(kernels.explain("conv2d", torch.zeros(1, 3, 5, 5), torch.zeros(8, 3, 3, 3)))
        each = str(kernels.explain("conv2d", torch.zeros(1, 3, 5, 5), torch.zeros(3, 1, 3, 3), groups=3))
    assert "implicit matrix product, 288 terms" in dense
    assert "implicit matrix product across taps, 27 terms" in few
    assert "depthwise, a sum over the taps for each output" in each
