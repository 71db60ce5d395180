"""conv2d and conv_transpose2d in CUDA C++, executed on the CPU: every tile and form."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import kernels
from kernels.case import Case
from kernels.conv2d.cuda_tiles import (
    ProductTile,
    product_tile,
    product_tiles,
    splits_of_steps,
    sum_threads,
    use_product_tile,
)
from kernels.conv2d.gpu_tiles import parts_of_pixels
from kernels.runtime.cupy_gpu import numpy_dtype
from kernels.runtime.targets import TARGETS
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu, report
from tests.support import oracle
from tests.support.cuda_cpu.run import SMALL, Launched

OPS = ("conv2d", "conv_transpose2d")
DTYPES = ("float32", "float64", "float16", "bfloat16")
H100 = TARGETS["sm_90"]
pytestmark = helpers.needs_harness


def channels_last(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def constants(launched: Launched, kernel: str, name: str) -> list[Any]:
    """A constant of each launch of a kernel."""
    pairs = zip(launched.kernels, launched.sources)
    return [dict(source.constants)[name] for k, source in pairs if k == kernel]


# ----- every tile, every form --------------------------------------------------------------------------------------

FORMS = ("first", "last", "written", "vectors")
TILES = [pytest.param(tile, dtype, form, id=f"{dtype}-{tile.rows}x{tile.columns}-{form}")
         for dtype in DTYPES for tile in product_tiles(numpy_dtype(dtype).itemsize) for form in FORMS]  # fmt: skip


def _arguments(tile: ProductTile, dtype: str, form: str) -> dict[str, Any]:
    """A convolution whose channels and pixels fill a tile and a little more, with a last step that is not whole."""
    vector = 16 // numpy_dtype(dtype).itemsize
    channels = vector if form == "vectors" else 3
    outputs = tile.columns + (vector if form in ("written", "vectors") else 1)
    x = helpers.numbers(2, channels, 9, 2 + tile.rows // 8)
    return {
        "x": x if form == "first" else channels_last(x),
        "weight": helpers.numbers(outputs, channels, 2, 3, seed=1) / np.float32((6 * channels) ** 0.5),
        "bias": helpers.numbers(outputs, seed=2),
        "stride": (2, 1),
        "padding": 1,
        "activation": "relu",
    }


@pytest.mark.parametrize("tile, dtype, form", TILES)
def test_every_tile(tile: ProductTile, dtype: str, form: str):
    """Both products of a training step and the data gradient, in random order, on every tile that there is."""
    case = Case("conv2d", "tile", {}, _arguments(tile, dtype, form))
    with on_cpu(order="random", seed=1) as launched, use_product_tile(tile):
        if dtype in helpers.HALVES:
            report(helpers.half_complaints(case, dtype))
        else:
            given = helpers.in_dtype(case.arguments, dtype)
            expected = oracle.expect("conv2d", given)
            report(expected.complaints(oracle.with_vjp("conv2d", given, expected.incoming, "cupy")))
    wide = 16 // numpy_dtype(dtype).itemsize
    read, written = (wide if form == "vectors" else 1), (wide if form in ("written", "vectors") else 1)
    # Forward reads what backward writes, and writes what it reads.
    assert constants(launched, "convolve", "VECTOR") == [read, written]
    assert constants(launched, "convolve", "WRITE") == [written, read]
    assert constants(launched, "weight_gradient_of_parts", "VECTOR") == [read]
    assert set(constants(launched, "convolve", "LAST")) == {int(form != "first")}


def test_the_sums_of_every_tile_are_the_same_to_the_last_bit():
    """A sum goes over its terms in one order, whatever the tile: what runs on one GPU, runs on any."""
    arguments = _arguments(product_tiles(4)[0], "float32", "vectors")
    answers = []
    for tile in product_tiles(4):
        with on_cpu("fast"), use_product_tile(tile):
            answers.append(kernels.conv2d(**arguments, backend="cupy"))
    for other in answers[1:]:
        np.testing.assert_array_equal(other, answers[0])


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
    expected = oracle.expect(
        "conv2d", {"x": channels_last(x) if last else x, "weight": weight, "groups": groups, **window}
    )
    with on_cpu():
        found = oracle.with_vjp("conv2d", expected.arguments, expected.incoming, "cupy")
    report(expected.complaints(found))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_in_vectors(dtype: str, stride: int):
    vector = 16 // numpy_dtype(dtype).itemsize
    channels = 3 * vector
    arguments = {
        "x": channels_last(helpers.numbers(2, channels, 7, 6)),
        "weight": helpers.numbers(channels, 1, 3, 2, seed=1),
        "bias": helpers.numbers(channels, seed=2),
        "groups": channels,
        "stride": stride,
        "padding": 1,
        "activation": "gelu",
    }
    case = Case("conv2d", "depthwise", {}, arguments)
    with on_cpu() as launched:
        if dtype in helpers.HALVES:
            report(helpers.half_complaints(case, dtype))
        else:
            given = helpers.in_dtype(arguments, dtype)
            expected = oracle.expect("conv2d", given)
            report(expected.complaints(oracle.with_vjp("conv2d", given, expected.incoming, "cupy")))
    assert constants(launched, "convolve_depthwise", "VECTOR") == [vector]
    assert constants(launched, "spread_depthwise", "VECTOR") == [vector]


def test_a_weights_gradient_is_summed_over_several_parts():
    arguments = {"x": helpers.numbers(3, 5, 20, 30), "weight": helpers.numbers(4, 5, 3, 3, seed=1), "padding": 1}
    assert parts_of_pixels(1800, 1, SMALL)[0] > 1
    expected = oracle.expect("conv2d", arguments)
    with on_cpu() as launched:
        found = oracle.with_vjp("conv2d", arguments, expected.incoming, "cupy")
    report(expected.complaints(found))
    products = ["pack_weight", "convolve"] * 2
    assert launched.kernels == [*products, "weight_gradient_of_parts", "add_parts"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs, last, height", [(16, False, 4), (16, False, 3), (16, True, 4), (13, True, 4)])
def test_few_tiles_are_cut_along_their_sums(outputs: int, last: bool, height: int, dtype: str):
    """On a large GPU, a small image of many channels: shares of the sums, then their sum, bias and activation."""
    x = helpers.numbers(1, 88, height, 6)
    arguments = {
        "x": channels_last(x) if last else x,
        "weight": helpers.numbers(outputs, 88, 3, 3, seed=1) / np.float32(28),
        "bias": helpers.numbers(outputs, seed=2),
        "padding": 1,
        "activation": "gelu",
    }
    case = Case("conv2d", "few tiles", {}, arguments)
    with on_cpu(order="random", seed=2, target=H100) as launched:
        if dtype in helpers.HALVES:
            report(helpers.half_complaints(case, dtype))
        else:
            given = helpers.in_dtype(arguments, dtype)
            expected = oracle.expect("conv2d", given)
            report(expected.complaints(oracle.with_vjp("conv2d", given, expected.incoming, "cupy")))
    assert launched.kernels[:3] == ["pack_weight", "convolve", "finish_parts"]
    vector = 16 // numpy_dtype(dtype).itemsize
    whole = outputs % vector == 0 if last else height * 6 % vector == 0
    assert constants(launched, "finish_parts", "VECTOR")[0] == (vector if whole else 1)


@pytest.mark.parametrize(
    "blocks, steps, groups, expected",
    [(16, 144, 1, 8), (132, 144, 1, 1), (4, 20, 4, 2), (1, 7, 1, 1), (2, 10**4, 2000, 32)],
)
def test_splits(blocks: int, steps: int, groups: int, expected: int):
    assert splits_of_steps(blocks, steps, groups, H100) == expected


def test_the_kernels_that_run_are_these():
    names = {}
    for groups in (1, 6):
        x, weight = helpers.numbers(1, 6, 5, 5), helpers.numbers(6, 6 // groups, 3, 3)
        with on_cpu() as launched:
            y, pullback = kernels.vjp(
                "conv2d", x, weight, np.zeros(6, np.float32), groups=groups, activation="tanh", backend="cupy"
            )
            pullback(y)
        names[groups] = launched.kernels
    sums = ["sums_of_pixels", "add_parts"]
    assert names[1] == [
        "pack_weight", "convolve", "activation_gradient_elements", "pack_weight", "convolve",
        "weight_gradient_of_parts", "add_parts", *sums,
    ]  # fmt: skip
    turned = ["sums_of_pixels", "add_turned_parts"]
    assert names[6] == ["convolve_depthwise", "activation_gradient_elements", "spread_depthwise", *turned, *sums]


@pytest.mark.parametrize("groups", [1, 3])
def test_offsets_beyond_32_bits(groups: int):
    """Images 2**30 elements apart; the memory between them is never touched."""
    stride = 2**30 + 64
    base = np.empty(2 * stride + 60, np.float16)
    x = np.lib.stride_tricks.as_strided(base, (3, 3, 4, 5), (stride * 2, 40, 10, 2))
    x[...] = helpers.numbers(3, 3, 4, 5)
    weight = helpers.numbers(3, 3 // groups, 2, 2, seed=1).astype(np.float16)
    answers = []
    with on_cpu() as launched:
        for given in (np.ascontiguousarray(x), x):
            y, pullback = kernels.vjp("conv2d", given, weight, groups=groups, backend="cupy")
            answers.append((y, *pullback(y)[:2]))
    assert "long long" in {dict(s.constants)["INDEX"] for s in launched.sources}
    for a, b in zip(*answers, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("groups", [1, 3])
def test_infinite_weights_do_not_reach_the_padding(groups: int):
    weight = np.ones((3, 3 // groups, 3, 3), np.float32)
    weight[..., 0, 0] = np.inf
    with on_cpu():
        y = kernels.conv2d(np.ones((1, 3, 4, 4), np.float32), weight, padding=1, groups=groups, backend="cupy")
    assert np.isinf(y[..., 1:, 1:]).all()


# ----- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_aligned_channels_are_read_in_whole_sectors_without_conflicts(dtype: str):
    """Channels-last: at most a tenth more sectors than the bytes asked for, and turns of shared memory likewise."""
    vector = 16 // numpy_dtype(dtype).itemsize
    x = channels_last(helpers.numbers(1, 64, 8, 16).astype(numpy_dtype(dtype)))
    weight = channels_last(helpers.numbers(64, 64, 1, 1, seed=1).astype(numpy_dtype(dtype)))
    with on_cpu("prof") as launched:
        y, pullback = kernels.vjp("conv2d", x, weight, backend="cupy")
        pullback(y)
    for kernel, source, counts in zip(launched.kernels, launched.sources, launched.counts):
        if kernel in ("convolve", "weight_gradient_of_parts"):
            assert dict(source.constants)["VECTOR"] == vector
            assert counts["load_sectors"] * 32 <= 1.1 * counts["global_loaded"], kernel
            assert counts["store_sectors"] * 32 <= 1.1 * counts["global_stored"], kernel
            turns = counts["shared_load_turns"] + counts["shared_store_turns"]
            assert turns * 128 <= 1.1 * (counts["shared_loaded"] + counts["shared_stored"]), kernel


# ----- choices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows, columns, itemsize, expected",
    [
        (100_352, 256, 2, (128, 128)),
        (100_352, 64, 2, (128, 64)),
        (100_352, 32, 2, (64, 32)),
        (3136, 64, 2, (64, 32)),  # idle multiprocessors
        (49, 512, 2, (64, 32)),
        (100_352, 256, 4, (128, 128)),
        (100_352, 64, 8, (64, 64)),
        (100_352, 1, 8, (64, 32)),
    ],
)
def test_tiles(rows: int, columns: int, itemsize: int, expected: tuple[int, int]):
    tile = product_tile(rows, columns, itemsize, H100)
    assert (tile.rows, tile.columns) == expected


def test_every_tile_that_is_listed_is_chosen_for_some_sizes():
    sizes = (1, 16, 33, 64, 100, 5000, 10**6)
    for itemsize in (2, 4, 8):
        found = {product_tile(r, c, itemsize, H100) for r, c in itertools.product(sizes, sizes)}
        assert found == set(product_tiles(itemsize))


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_tiles_are_shared_out_evenly(itemsize: int):
    for tile in product_tiles(itemsize):
        vector = 16 // itemsize
        assert tile.inner * itemsize == 64
        assert tile.rows * tile.inner % (vector * tile.threads) == 0
        assert tile.columns * tile.inner % (vector * tile.threads) == 0
        assert tile.threads % tile.rows == 0 or tile.rows % tile.threads == 0
        assert tile.inner <= tile.threads <= 256


@pytest.mark.parametrize(
    "channels, neighbours, expected",
    [(64, True, (32, 8)), (3, True, (4, 64)), (1, True, (1, 256)), (64, False, (1, 256))],
)
def test_threads_of_sums(channels: int, neighbours: bool, expected: tuple[int, int]):
    assert sum_threads(channels, neighbours) == expected


def test_what_a_launch_cannot_hold_is_refused():
    x, weight = np.zeros((1, 2, 300, 300), np.float32), np.zeros((2, 2, 1, 1), np.float32)
    with on_cpu(), pytest.raises(kernels.BackendError, match=r"stride is \(256, 300\); a launch holds 65535 of its"):
        kernels.conv2d(x, weight, stride=(256, 300), backend="cupy")


def test_explain_names_the_kernel(capsys: pytest.CaptureFixture[str]):
    x = np.zeros((1, 6, 5, 5), np.float32)
    with on_cpu():
        kernels.explain("conv2d", x, np.zeros((4, 6, 3, 3), np.float32))
        kernels.explain("conv2d", x, np.zeros((6, 1, 3, 3), np.float32), groups=6)
    shown = capsys.readouterr().out
    assert "implicit matrix product in registers, 54 terms" in shown
    assert "depthwise, a sum over the taps for each output" in shown
