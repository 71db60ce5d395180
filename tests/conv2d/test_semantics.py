"""What re-implementations of convolution get wrong, and every branch of the CPU kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.conv2d import gather, numba_cpu, winograd
from kernels.conv2d.op import CONV2D, Conv2dProblem, resolve_padding
from kernels.simd import TILE_ROWS


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def problem(x_shape, weight_shape, **arguments) -> Conv2dProblem:
    """The checked problem of a call on contiguous float32 arrays."""
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "activation": None}
    values = (defaults | arguments).values()
    from kernels.arrays import ArraySpec

    return Conv2dProblem.check(ArraySpec(x_shape, "float32"), ArraySpec(weight_shape, "float32"), None, *values)


# ----- padding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 14))
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_upper_and_lower_are_onnx_and_tensorflows(size, kernel, stride, dilation):
    """total = max(0, (ceil(n / s) - 1) * s + d * (k - 1) + 1 - n), the odd one after (upper) or before (lower)."""
    image, pair = (size, size), (kernel, kernel)
    upper = resolve_padding("conv2d", "same_upper", image, pair, (stride, stride), (dilation, dilation))
    lower = resolve_padding("conv2d", "same_lower", image, pair, (stride, stride), (dilation, dilation))
    reach = dilation * (kernel - 1) + 1
    total = max(reach - stride, 0) if size % stride == 0 else max(reach - size % stride, 0)
    assert upper == (total // 2, total - total // 2) * 2
    assert lower == (total - total // 2, total // 2) * 2
    assert (size + total - reach) // stride + 1 == -(-size // stride)


@pytest.mark.parametrize("kernel", [(2, 3), (4, 1), (5, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_is_torchs(kernel, dilation):
    x = rng().standard_normal((1, 2, 9, 8)).astype(np.float32)
    weight = rng(1).standard_normal((3, 2, *kernel)).astype(np.float32)
    y = kernels.conv2d(x, weight, padding="same", dilation=dilation)
    expected = F.conv2d(torch.from_numpy(x), torch.from_numpy(weight), padding="same", dilation=dilation)
    np.testing.assert_allclose(y, expected.numpy(), atol=2e-6)


def test_padding_forms_agree():
    x = rng().standard_normal((1, 2, 6, 7))
    weight = rng(1).standard_normal((3, 2, 3, 3))
    one = kernels.conv2d(x, weight, padding=1)
    for padding in ((1, 1), [1, 1], ((1, 1), (1, 1)), "same", "same_upper", "same_lower", (1,)):
        assert np.array_equal(kernels.conv2d(x, weight, padding=padding), one)
    wide = np.pad(x, ((0, 0), (0, 0), (2, 0), (1, 3)))
    assert np.array_equal(kernels.conv2d(x, weight, padding=((2, 0), (1, 3))), kernels.conv2d(wide, weight))
    assert np.array_equal(kernels.conv2d(x, weight, padding="valid"), kernels.conv2d(x, weight))


# ----- values ------------------------------------------------------------------------------------------------------


def test_it_is_a_cross_correlation():
    x = np.zeros((1, 1, 3, 3), np.float32)
    x[0, 0, 0, 0] = 1
    weight = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    assert kernels.conv2d(x, weight)[0, 0, 0, 0] == 0  # the filter's own first tap, not its last


def test_nan_and_infinity_spread_as_far_as_the_filter():
    x = np.zeros((1, 3, 9, 9), np.float32)
    x[0, 1, 4, 4] = np.nan
    weight = np.ones((40, 3, 3, 3), np.float32)
    hit = np.isnan(kernels.conv2d(x, weight, padding=1)[0])
    expected = np.zeros((9, 9), bool)
    expected[3:6, 3:6] = True
    assert (hit == expected).all()
    x[0, 1, 4, 4] = np.inf
    y = kernels.conv2d(x, weight, padding=1)[0]
    assert (np.isinf(y) == expected).all() and (y[~np.isinf(y)] == 0).all()


def test_winograd_keeps_what_is_not_finite_where_it_belongs():
    """The transforms would spread a NaN over its tile, and make NaN of infinity minus infinity."""
    x = rng().standard_normal((1, 64, 15, 14)).astype(np.float32)
    weight = rng(1).random((64, 64, 3, 3)).astype(np.float32) + 0.5
    assert numba_cpu.kernel_name(problem(x.shape, weight.shape, padding=1), False) == "winograd"
    clean = kernels.conv2d(x, weight, padding=1)
    for value in (np.nan, np.inf, -np.inf, np.float32(3e38)):
        x[0, 7, 6, 5] = value
        y = kernels.conv2d(x, weight, padding=1)
        expected = np.zeros((15, 14), bool)
        expected[5:8, 4:7] = True
        if np.isfinite(value):
            assert np.isfinite(y).any()  # some weights are below 1
        else:
            assert (~np.isfinite(y[0]) == expected).all()
            assert (np.isnan(y[0]) == (expected & np.isnan(value))).all()
        error = np.abs(y - clean)[:, :, ~expected].max()
        assert error <= 1e-5 * np.abs(clean).max()
        exact = kernels.conv2d(x.astype("f8"), weight.astype("f8"), padding=1)
        finite = np.isfinite(y[0]) & expected
        np.testing.assert_allclose(y[0][finite], exact[0][finite], rtol=1e-5)


@pytest.mark.parametrize("row", [0, 6])
def test_depthwise_weight_gradient_keeps_nan_to_its_taps(row):
    """The rows at the ends meet one row of taps each; the others must not multiply them by zeros."""
    x, weight = rng().standard_normal((1, 3, 7, 20)), rng(1).standard_normal((3, 1, 3, 3))
    x[0, 1, row, 4] = np.nan
    y, pullback = kernels.vjp("conv2d", x, weight, groups=3)
    found = pullback(np.ones_like(y))[1]
    expected = np.zeros((3, 1, 3, 3), bool)
    expected[1, 0, 0 if row == 0 else 2] = True
    assert (np.isnan(found) == expected).all()


def test_zero_weight_does_not_hide_nan():
    x = np.full((1, 2, 3, 3), np.nan, np.float32)
    for groups, weight in ((1, np.zeros((3, 2, 1, 1))), (2, np.zeros((2, 1, 1, 1)))):
        assert np.isnan(kernels.conv2d(x, weight.astype(np.float32), groups=groups)).all()


def test_relu_keeps_nan():
    x = np.array([np.nan, -1.0, 2.0], np.float32).reshape(1, 1, 1, 3)
    weight = np.ones((1, 1, 1, 1), np.float32)
    y = kernels.conv2d(x, weight, activation="relu").ravel()
    assert np.isnan(y[0]) and y[1] == 0 and y[2] == 2


def test_long_sums_lose_less_than_one_chain():
    """128 taps join the total at once: a float32 sum of 8192 ones and noise stays within 2 ulp of float64's."""
    x = (1 + rng().standard_normal((1, 8192, 1, 1)) * 1e-3).astype(np.float32)
    weight = np.ones((4, 8192, 1, 1), np.float32)
    exact = x.astype(np.float64).sum()
    assert abs(kernels.conv2d(x, weight).ravel() - exact).max() <= 2 * np.spacing(np.float32(exact))


def test_empty_batch_has_zero_gradients():
    x = torch.zeros(0, 3, 5, 5, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    bias = torch.randn(4, requires_grad=True)
    y = kernels.conv2d(x, weight, bias)
    assert y.shape == (0, 4, 3, 3)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert weight.grad.shape == weight.shape and not weight.grad.any()
    assert bias.grad.shape == bias.shape and not bias.grad.any()


def test_one_gradient_alone():
    base = [rng().standard_normal((2, 4, 6, 6)), rng(1).standard_normal((6, 2, 3, 3)), rng(2).standard_normal(6)]
    for wanted in range(3):
        ours, theirs = ([torch.tensor(a, requires_grad=i == wanted) for i, a in enumerate(base)] for _ in range(2))
        kernels.conv2d(*ours, groups=2, padding=1).sum().backward()  # an expanded gradient, stride 0
        F.conv2d(*theirs, groups=2, padding=1).sum().backward()
        for i, (a, b) in enumerate(zip(ours, theirs)):
            assert (a.grad is not None) == (i == wanted)
            if i == wanted:
                torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (2, 6, 1, 1), (1, 1, 1, 1)])
def test_ambiguous_layouts_come_back_as_torchs(shape):
    """With one channel or one pixel both layouts have the same strides: the answer is torch's."""
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(shape).contiguous(memory_format=layout)
        weight = torch.randn(4, shape[1], 1, 1)
        ours, theirs = kernels.conv2d(x, weight), F.conv2d(x, weight)
        torch.testing.assert_close(ours, theirs)
        assert ours.is_contiguous(memory_format=torch.channels_last) or ours.is_contiguous()


def test_channels_last_has_the_same_values():
    x = rng().standard_normal((2, 20, 9, 8)).astype(np.float32)
    weight = rng(1).standard_normal((33, 20, 3, 3)).astype(np.float32)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    a, b = kernels.conv2d(x, weight, padding=1), kernels.conv2d(last, weight, padding=1)
    assert np.array_equal(a, b)  # the same sums in the same order
    assert b.transpose(0, 2, 3, 1).flags.c_contiguous


# ----- branches of the kernels -------------------------------------------------------------------------------------


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
        ((1, 300, 12, 12), (6, 300, 1, 1), {}, "gather"),
        ((1, 40, 2, 1), (6, 40, 1, 1), {}, "gather"),  # vectors that would be nearly empty
        ((1, 40, 8, 8), (6, 40, 1, 1), {"padding": 1}, "gather"),
        ((1, 40, 8, 8), (6, 40, 1, 1), {"stride": 2}, "gather"),
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
        ((1, 70, 8, 8), (300, 70, 1, 1), {}, "gather"),  # the weight's columns, many of them
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
            "image_pass",
            "few_channels",
            "winograd",
            "weight_gradient",
            "depthwise_planes",
            "depthwise_pixels",
            "one_plane",
            "pointwise",
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
        monkeypatch.setattr(winograd, "threads_for", lambda *_: parts)
        monkeypatch.setattr(winograd, "MOST_TILES", most)
        winograd._plan.cache_clear()
        winograd._prepare.cache_clear()
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
        winograd._prepare.cache_clear()


# ----- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stride": 0}, ValueError, "conv2d: stride must be at least 1, got 0"),
        ({"stride": (1, -2)}, ValueError, "conv2d: stride must be at least 1, got (1, -2)"),
        ({"stride": (1, 2, 3)}, ValueError, "conv2d: stride must be an int or a pair of ints, got (1, 2, 3)"),
        ({"stride": 1.5}, TypeError, "conv2d: stride must be an int, got 1.5 (float)"),
        ({"padding": -1}, ValueError, "conv2d: padding must be at least 0, got -1"),
        ({"padding": "full"}, ValueError, "conv2d: padding must be 'valid', 'same', 'same_upper' or 'same_lower'"),
        ({"padding": "same", "stride": 2}, ValueError, "conv2d: padding 'same' needs stride 1"),
        ({"groups": 3}, ValueError, "conv2d: groups must divide the 4 channels of x, got 3"),
        ({"groups": 4}, ValueError, "conv2d: groups must divide the 6 output channels of weight, got 4"),
        ({"groups": 2}, ValueError, "conv2d: weight must have 2 input channels (x has 4 in 2 groups), got (6, 4, 3, 3"),
        ({"dilation": 3}, ValueError, "conv2d: weight (dilated height 7) must not exceed the padded height of x, got "),
        ({"activation": "elu"}, ValueError, "conv2d: activation must be one of None, 'relu', 'gelu', 'silu', 'tanh', "),
        ({"bias": np.zeros(5, np.float32)}, ValueError, "conv2d: bias must have shape (6,)"),
        ({"bias": np.zeros(6)}, TypeError, "conv2d: bias must have the dtype of x (float32), got float64"),
    ],
)
def test_errors(arguments, error, message):
    x, weight = np.zeros((1, 4, 5, 5), np.float32), np.zeros((6, 4, 3, 3), np.float32)
    with pytest.raises(error) as caught:
        kernels.conv2d(x, weight, **arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_errors_of_shapes_and_types():
    weight = np.zeros((6, 4, 3, 3), np.float32)
    for x, error, message in (
        (np.zeros((4, 5), np.float32), ValueError, "conv2d: x must have shape (N, C, H, W) or (C, H, W), got 2 dim"),
        (np.zeros((1, 4, 0, 5), np.float32), ValueError, "conv2d: x must not have a dimension of size 0"),
        (np.zeros((1, 4, 5, 5), np.int64), TypeError, "conv2d: x must have dtype float16 or bfloat16 or float32 or fl"),
        ([[1.0]], TypeError, "conv2d: x must be a NumPy, torch or CuPy array, got list"),
        (torch.zeros(1, 4, 5, 5), TypeError, "conv2d: weight must be a torch array, as x is, got a numpy array"),
    ):
        with pytest.raises(error) as caught:
            kernels.conv2d(x, weight)
        assert str(caught.value).startswith(message)
    assert CONV2D.name == "conv2d"


def test_transposed_errors():
    x, weight = np.zeros((1, 4, 5, 5), np.float32), np.zeros((4, 6, 3, 3), np.float32)
    for arguments, message in (
        ({"output_padding": 1}, "conv_transpose2d: output_padding must be smaller than stride (1, 1) or dilation (1, "),
        ({"padding": 4}, "conv_transpose2d: padding must leave an output of at least 1 x 1, got an output of (-1, -1)"),
        ({"groups": 3}, "conv_transpose2d: groups must divide the 4 channels of x, got 3"),
    ):
        with pytest.raises(ValueError) as caught:
            kernels.conv_transpose2d(x, weight, **arguments)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_is_the_adjoint(stride):
    """<conv(x), y> = <x, conv_transpose(y)> for the same weight."""
    x, weight = rng().standard_normal((2, 4, 11, 9)), rng(1).standard_normal((6, 4, 3, 2))
    y = kernels.conv2d(x, weight, stride=stride, padding=1)
    other = rng(2).standard_normal(y.shape)
    extra = [(x.shape[2 + d] + 2 - weight.shape[2 + d]) % stride for d in (0, 1)]
    back = kernels.conv_transpose2d(other, weight, stride=stride, padding=1, output_padding=extra)
    assert back.shape == x.shape
    assert (y * other).sum() == pytest.approx((x * back).sum(), rel=1e-12)
