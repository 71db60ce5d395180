"""Which kernel a convolution takes, and that each gives the right numbers in the same bits however it is split."""

from __future__ import annotations

import numpy as np
import pytest

import kernels
from kernels.conv2d import gather, launch, numba_cpu, winograd
from kernels.conv2d.op import Conv2dProblem
from kernels.simd import TILE_ROWS


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def problem(x_shape, weight_shape, **arguments) -> Conv2dProblem:
    """The checked problem of a call on contiguous float32 arrays."""
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "activation": None}
    values = (defaults | arguments).values()
    from kernels.arrays import ArraySpec

    return Conv2dProblem.check(ArraySpec(x_shape, "float32"), ArraySpec(weight_shape, "float32"), None, *values)


@pytest.mark.parametrize(
    ("x", "weight", "arguments", "name"),
    [
        ((1, 4, 5, 5), (6, 4, 3, 3), {}, "gather"),
        ((1, 1, 5, 5), (6, 1, 3, 2), {}, "few channels"),  # few products
        ((1, 1, 5, 5), (6, 1, 3, 3), {}, "one plane"),
        ((1, 3, 9, 9), (6, 3, 3, 3), {}, "few channels"),
        ((1, 3, 9, 9), (6, 3, 3, 3), {"stride": 2}, "gather"),
        ((1, 40, 9, 9), (3, 40, 3, 3), {}, "few channels"),  # few outputs
        ((1, 12, 9, 9), (6, 6, 3, 3), {"groups": 2}, "few channels"),
        ((1, 8, 5, 5), (8, 4, 3, 3), {"groups": 2}, "gather"),
        ((1, 40, 8, 8), (6, 40, 1, 1), {}, "pointwise"),  # few channels
        ((2, 40, 8, 8), (6, 20, 1, 1), {"groups": 2}, "pointwise"),
        ((1, 300, 8, 8), (6, 300, 1, 1), {}, "pointwise"),  # few pixels
        ((1, 300, 12, 12), (6, 300, 1, 1), {}, "gather" if TILE_ROWS >= 12 else "pointwise"),
        ((1, 40, 2, 1), (6, 40, 1, 1), {}, "gather"),  # vectors that would be nearly empty
        ((1, 40, 8, 8), (6, 40, 1, 1), {"padding": 1}, "gather"),
        ((1, 40, 8, 8), (6, 40, 1, 1), {"stride": 2}, "gather"),
        ((1, 40, 8, 8), (16, 40, 1, 1), {"stride": 2}, "gather" if TILE_ROWS >= 12 else "pointwise"),
        ((1, 64, 14, 14), (64, 64, 3, 3), {"padding": 1}, "winograd"),
        ((4, 300, 16, 16), (64, 300, 3, 3), {"padding": ((0, 1), (1, 2))}, "winograd"),
        ((1, 64, 24, 24), (31, 64, 3, 3), {"padding": 1}, "gather"),
        ((1, 64, 14, 14), (64, 64, 3, 3), {"padding": 1, "dilation": 2}, "gather"),
        ((1, 64, 24, 24), (64, 64, 3, 3), {"padding": 1, "stride": 2}, "gather"),
        ((1, 128, 14, 14), (128, 64, 3, 3), {"padding": 1, "groups": 2}, "gather"),
        ((1, 512, 4, 4), (512, 512, 3, 3), {"padding": 1}, "gather"),  # too few pixels for so many filters
        ((60, 64, 2, 2), (64, 64, 3, 3), {"padding": 1}, "gather"),  # too much beside the edge
        ((1, 4, 5, 5), (4, 1, 3, 3), {"groups": 4}, "one plane"),
        ((1, 4, 5, 5), (8, 1, 3, 3), {"groups": 4}, "one plane"),
        ((1, 4, 5, 5), (4, 1, 3, 3), {"groups": 4, "stride": 2}, "depthwise planes"),
        ((1, 4, 5, 5), (4, 1, 3, 3), {"groups": 4, "padding": 2, "dilation": 2}, "depthwise planes"),
    ],
)
def test_choice_of_kernel(x, weight, arguments, name):
    assert numba_cpu.kernel_name(problem(x, weight, **arguments), False) == name


@pytest.mark.parametrize(
    ("x", "weight", "arguments", "name"),
    [
        ((1, 3, 19, 19), (16, 3, 7, 7), {"stride": 2}, "few channels"),  # the gradient of an RGB image
        ((1, 1, 9, 9), (32, 1, 3, 3), {}, "few channels"),
        ((1, 4, 9, 9), (32, 4, 3, 3), {}, "gather"),
        ((1, 64, 16, 16), (70, 64, 3, 3), {}, "winograd"),
        ((1, 70, 8, 8), (40, 70, 1, 1), {}, "pointwise"),
        ((1, 300, 8, 8), (200, 300, 1, 1), {}, "gather"),  # the weight's columns, many of them and far apart
        ((1, 4, 9, 9), (4, 1, 3, 3), {"groups": 4}, "one plane"),
        ((1, 4, 9, 9), (8, 1, 3, 3), {"groups": 4}, "depthwise planes"),
    ],
)
def test_choice_of_kernel_of_the_transposed_pass(x, weight, arguments, name):
    assert numba_cpu.kernel_name(problem(x, weight, **arguments), True) == name


def test_empty_batch_of_every_kernel():
    """No image: an empty result, and gradients of zeros."""
    for weight, arguments in (((5, 9, 1, 1), {}), ((40, 40, 3, 3), {}), ((9, 1, 3, 3), {"groups": 9})):
        x = np.zeros((0, 40 if weight[1] == 40 else 9, 8, 8), np.float32)
        y, pullback = kernels.vjp("conv2d", x, np.ones(weight, np.float32), backend="numba", **arguments)
        dx, dw, _ = pullback(y)
        assert y.shape[:2] == (0, weight[0]) and dx.shape == x.shape
        np.testing.assert_array_equal(dw, np.zeros(weight, np.float32))


def test_choice_of_kernel_channels_last(capsys):
    x = np.ones((1, 5, 5, 4), np.float32).transpose(0, 3, 1, 2)
    for outputs, name in ((4, "depthwise pixels"), (8, "one plane")):
        found = kernels.explain("conv2d", x, np.ones((outputs, 1, 3, 3), np.float32), groups=4)
        assert numba_cpu.kernel_name(found.problem, False) == name
        assert f"{name} kernel" in capsys.readouterr().out


BLOCK = gather.BLOCK


@pytest.mark.parametrize(
    ("x", "weight", "arguments"),
    [
        # (what it reaches in the gather kernel)
        ((1, 40, 2, 2), (5, 40, 1, 1), {}),  # fewer pixels than the small tile
        ((1, 40, 3, 2), (5, 40, 1, 1), {}),  # more than the small tile, fewer than the large one
        ((5, 170, 5, 7), (4, 170, 1, 1), {}),  # channels collected across images, more than one chunk of taps
        ((1, 200, BLOCK // 4 + 1, 4), (70, 200, 1, 1), {}),  # and over more than one block of pixels
        ((2, 5, BLOCK // 30, 41), (33, 5, 3, 3), {"padding": 1}),  # several blocks an image, padded images reused
        ((70, 4, 4, 4), (33, 4, 3, 3), {"padding": 1}),  # many images a block
        ((3, 4, 9, 9), (40, 4, 3, 3), {"stride": 3}),  # phases of the transposed pass without margins
        ((2, 4, 9, 9), (40, 4, 2, 2), {"stride": 3}),  # phases without a tap
        ((2, 4, 11, 9), (36, 4, 3, 2), {"stride": 2, "padding": 1}),  # a phase of one tap, beside its pixel
        ((1, 4, 5, 5), (33, 4, 2, 3), {"stride": 2}),  # a phase of one tap, at its pixel; others need margins
        ((2, 4, 8, 7), (37, 4, 2, 2), {"stride": 2}),  # phases of one tap, none needs margins
        ((2, 12, 7, 6), (9, 4, 3, 3), {"groups": 3, "padding": 2}),
        ((40, 1, 12, 12), (3, 1, 3, 3), {}),  # few tiles of weights: the images fall into segments
        ((2, 6, 11, 10), (6, 1, 3, 3), {"groups": 6, "padding": 1}),  # rows in fours and one by one
        ((2, 6, 11, 40), (6, 1, 5, 5), {"groups": 6, "stride": (2, 3), "padding": 2}),
        ((2, 6, 9, 9), (18, 1, 3, 3), {"groups": 6, "dilation": 2, "padding": (2, 1)}),
        # (what it reaches in the kernel for 1x1 filters)
        ((2, 40, 7, 7), (21, 40, 1, 1), {}),  # pixels behind whole vectors, outputs past a tile
        ((1, 300, 7, 7), (9, 300, 1, 1), {}),  # chunks of channels
        ((3, 12, 9, 12), (10, 6, 1, 1), {"groups": 2}),
        ((1, 150, 13, 13), (16, 150, 1, 1), {"activation": "relu"}),  # blocks of pixels, the last one narrow
        ((2, 9, 5, 16), (5, 9, 1, 1), {"activation": "silu"}),
        # (what it reaches in the Winograd kernel)
        ((1, 64, 14, 14), (64, 64, 3, 3), {"padding": 1}),  # one block
        ((3, 130, 15, 19), (70, 130, 3, 3), {"padding": 1}),  # odd sizes, two chunks of channels, blocks over images
        ((1, 40, 9, 77), (47, 40, 3, 3), {"padding": ((2, 0), (0, 4))}),  # rows of several vectors
        ((7, 120, 10, 9), (130, 120, 3, 3), {"padding": 1}),  # images share a block
        # (what it reaches in the kernel for few channels)
        ((2, 3, 70, 41), (14, 3, 3, 3), {"padding": 1}),  # blocks of rows; a large tile and one of two rows
        ((2, 1, 33, 45), (TILE_ROWS + 1, 1, 3, 2), {"padding": (0, 2)}),  # a large tile and one of a row
        ((1, 70, 6, 5), (2, 70, 3, 3), {"padding": 1}),  # several chunks of channels
        ((1, 3, 41, 38), (20, 3, 7, 7), {"stride": 2, "padding": 3}),  # back to an image, of four phases
        ((2, 6, 9, 8), (8, 3, 3, 3), {"groups": 2, "dilation": 2, "padding": 3}),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_paths(x, weight, arguments, channels_last, dtype):
    """Values and all gradients of every path against float64."""
    inputs = [rng(i).standard_normal(s).astype(dtype) for i, s in enumerate((x, weight, weight[:1]))]
    if channels_last:
        inputs[0] = np.ascontiguousarray(inputs[0].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    y, pullback = kernels.vjp("conv2d", *inputs, backend="numba", **arguments)
    exact, exact_pullback = kernels.vjp("conv2d", *(a.astype("f8") for a in inputs), backend="reference", **arguments)
    gradient = rng(9).standard_normal(y.shape).astype(dtype)
    for found, expected in zip((y, *pullback(gradient)), (exact, *exact_pullback(gradient.astype("f8")))):
        # A sum of n products errs by some sqrt(n) units; twice that for two-level sums of any shape here.
        scale = np.abs(expected).max()
        assert np.abs(found - expected).max() <= 24 * np.finfo(dtype).eps * scale


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_any_split_gives_the_same_bits(monkeypatch, parts):
    """Pixels or channels divided among parts, with every kernel, forward and backward."""
    cases = (
        ((3, 20, 13, 12), (70, 20, 3, 3), {"padding": 1}),
        ((1, 130, 3, 3), (200, 130, 3, 3), {"padding": 1}),  # few pixels: the parts divide the channels
        ((2, 9, 8, 7), (9, 1, 3, 3), {"groups": 9, "padding": 1}),
        ((2, 9, 8, 7), (9, 1, 3, 3), {"groups": 9, "padding": 1, "stride": 2}),
        ((3, 1, 9, 20), (5, 1, 3, 3), {}),  # many filters on one plane
        ((20, 2, 8, 7), (3, 2, 3, 3), {}),
        ((2, 3, 70, 41), (14, 3, 3, 3), {"padding": 1}),  # few channels, several blocks an image
        ((2, 66, 20, 21), (70, 66, 3, 3), {"padding": 1}),  # Winograd, the parts divide rows
        ((1, 64, 14, 14), (160, 64, 3, 3), {"padding": 1}),  # or channels
        ((2, 40, 14, 14), (70, 40, 1, 1), {}),  # 1x1 filters, the parts divide pixels
        ((1, 200, 7, 7), (70, 200, 1, 1), {}),  # or channels
    )

    def run(count):
        found = []
        for module in (
            "launch",
            "image_pass",
            "weight_gradient",
            "depthwise_planes",
            "depthwise_pixels",
        ):
            target = f"kernels.conv2d.{module}.threads_for"
            monkeypatch.setattr(__import__("sys").modules[target.rpartition(".")[0]], "threads_for", lambda *_: count)
        for x, weight, arguments in cases:
            inputs = [rng(i).standard_normal(s).astype(np.float32) for i, s in enumerate((x, weight))]
            for image in (inputs[0], np.ascontiguousarray(inputs[0].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)):
                y, pullback = kernels.vjp("conv2d", image, inputs[1], **arguments)
                found += [y, *pullback(np.sin(np.arange(y.size, dtype=np.float32)).reshape(y.shape))[:2]]
        return found

    for one, several in zip(run(1), run(parts)):
        assert one.tobytes() == several.tobytes()


@pytest.mark.parametrize("most", [1, 30, 10**6])
@pytest.mark.parametrize("parts", [1, 3])
def test_winograd_blocks_of_any_size_give_the_same_bits(monkeypatch, parts, most):
    """One row of tiles a block, some, and all of them: forward and back."""
    cases = (
        ((3, 130, 15, 19), (70, 130, 3, 3), {"padding": 1}),  # two chunks of channels
        ((8, 64, 17, 18), (160, 64, 3, 3), {}),
        ((7, 120, 10, 9), (130, 120, 3, 3), {"padding": 1}),  # rows of tiles in pairs, over images
        ((1, 40, 9, 77), (47, 40, 3, 3), {"padding": ((2, 0), (0, 4))}),
    )

    def run(parts, most):
        monkeypatch.setattr(launch, "threads_for", lambda *_: parts)
        monkeypatch.setattr(winograd, "MOST_TILES", most)
        winograd._plan.cache_clear()
        found = []
        for x, weight, arguments in cases:
            inputs = [rng(i).standard_normal(s).astype(np.float32) for i, s in enumerate((x, weight))]
            assert numba_cpu.kernel_name(problem(x, weight, **arguments), False) == "winograd"
            y, pullback = kernels.vjp("conv2d", *inputs, backend="numba", **arguments)
            found += [y, pullback(np.sin(np.arange(y.size, dtype=np.float32)).reshape(y.shape))[0]]
        return found

    try:
        for one, another in zip(run(1, winograd.MOST_TILES), run(parts, most), strict=True):
            assert one.tobytes() == another.tobytes()
    finally:
        winograd._plan.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stride", [2, (1, 2), (3, 1), (2, 5)])
@pytest.mark.parametrize(("groups", "size"), [(1, (9, 13)), (2, (8, 30)), (3, (31, 5))])
def test_one_tap_with_a_stride(groups, size, stride, dtype):
    """Exact in whole numbers, whichever kernel it is: pixels of several rows in a vector, the last one part full."""
    rng = np.random.default_rng(1)
    x = rng.integers(-3, 4, (2, 140 * groups, *size)).astype(dtype)
    weight = rng.integers(-3, 4, (17 * groups, 140, 1, 1)).astype(dtype)
    bias = rng.integers(-3, 4, 17 * groups).astype(dtype)
    found = []
    for backend in ("numba", "reference"):
        arguments = {"stride": stride, "groups": groups, "activation": "relu", "backend": backend}
        y, pullback = kernels.vjp("conv2d", x, weight, bias, **arguments)
        found.append([y, *pullback(np.ones_like(y))])
    for mine, exact in zip(*found, strict=True):
        np.testing.assert_array_equal(mine, exact)
