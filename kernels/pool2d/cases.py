"""Calls of the poolings that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

from kernels.case import Case

Shape = tuple[int, ...]


def _max(name: str, x: Shape, *tags: str, last: bool = False, **arguments: Any) -> Case:
    return Case("max_pool2d", name, {"x": x}, arguments, tags, last)


def _avg(name: str, x: Shape, *tags: str, last: bool = False, **arguments: Any) -> Case:
    return Case("avg_pool2d", name, {"x": x}, arguments, tags, last)


def _adaptive_max(name: str, x: Shape, *tags: str, last: bool = False, **arguments: Any) -> Case:
    return Case("adaptive_max_pool2d", name, {"x": x}, arguments, tags, last)


def _adaptive_avg(name: str, x: Shape, *tags: str, last: bool = False, **arguments: Any) -> Case:
    return Case("adaptive_avg_pool2d", name, {"x": x}, arguments, tags, last)


def _lp(name: str, x: Shape, *tags: str, last: bool = False, **arguments: Any) -> Case:
    return Case("lp_pool2d", name, {"x": x}, arguments, tags, last)


CASES = (
    # Every argument at least once, small.
    _max("2x2", (2, 3, 12, 34), "ci", kernel_size=2),
    _max("3x3 stride 2 padding 1", (2, 5, 9, 37), "ci", kernel_size=3, stride=2, padding=1),
    _max("3x3 stride 1 padding 1", (2, 3, 8, 35), "ci", kernel_size=(3,), stride=(1,), padding=(1,)),
    _max("2x2 stride 1", (1, 4, 7, 19), "ci", kernel_size=2, stride=1),
    _max("3x2 stride 2x3 dilation 2", (2, 3, 13, 15), "ci", kernel_size=(3, 2), stride=(2, 3), padding=1, dilation=2),
    _max("5x5 stride 1", (1, 2, 9, 40), "ci", kernel_size=5, stride=1, padding=2),
    _max("ceil mode", (2, 3, 8, 9), "ci", kernel_size=3, stride=2, padding=1, ceil_mode=True),
    _max("indices", (2, 3, 10, 21), "ci", kernel_size=2, return_indices=True),
    _max("indices 3x3 stride 2", (2, 3, 11, 33), "ci", kernel_size=3, stride=2, padding=1, return_indices=True),
    _max("channels-last", (2, 18, 9, 8), "ci", last=True, kernel_size=3, stride=2, padding=1),
    _max(
        "channels-last indices", (2, 5, 7, 8), "ci", last=True, kernel_size=(2, 3), dilation=(1, 2), return_indices=True
    ),
    _max("one image", (3, 8, 9), "ci", kernel_size=2, return_indices=True),
    # Awkward sizes.
    _max("1 pixel", (1, 1, 1, 1), "odd", kernel_size=1),
    _max("window as large as the image", (2, 3, 5, 4), "odd", kernel_size=(5, 4)),
    _max("stride past the window", (1, 2, 13, 70), "odd", kernel_size=2, stride=(5, 4)),
    _max("1 x W", (2, 3, 1, 67), "odd", kernel_size=(1, 3), stride=(1, 2), padding=(0, 1)),
    _max("H x 1", (2, 3, 33, 1), "odd", kernel_size=(3, 1), stride=1),
    _max("2x2 padding 1", (1, 2, 5, 5), "odd", kernel_size=2, padding=1),
    _max("ceil drops a window in the padding", (1, 2, 5, 5), "odd", kernel_size=2, stride=3, padding=1, ceil_mode=True),
    _max("ceil reaches out", (1, 2, 8, 33), "odd", kernel_size=9, stride=2, ceil_mode=True, padding=4),
    _max("empty batch", (0, 3, 6, 6), "odd", kernel_size=2),
    _max("cnn 1", (64, 32, 26, 26), "bench", kernel_size=2),
    _max("cnn 2", (64, 64, 11, 11), "bench", kernel_size=2),
    _max("resnet stem", (1, 64, 112, 112), "bench", kernel_size=3, stride=2, padding=1),
    _max("inception 3x3 stride 1", (1, 64, 56, 56), "bench", kernel_size=3, stride=1, padding=1),
    _max("vgg", (1, 128, 112, 112), "bench", kernel_size=2),
    _max("resnet stem channels-last", (1, 64, 112, 112), "bench", last=True, kernel_size=3, stride=2, padding=1),
    _max("crnn 2x1", (8, 256, 8, 50), "bench", kernel_size=(2, 1)),
    _max("vectors of channels", (2, 64, 8, 9), "gpu", last=True, kernel_size=3, stride=2, padding=1),
    _avg("2x2", (2, 3, 12, 34), "ci", kernel_size=2),
    _avg("3x3 stride 1 padding 1", (2, 3, 8, 35), "ci", kernel_size=3, stride=1, padding=1),
    _avg("3x3 stride 2 padding 1", (2, 3, 9, 37), "ci", kernel_size=3, stride=2, padding=1),
    _avg("padding not counted", (2, 3, 9, 18), "ci", kernel_size=3, stride=2, padding=1, count_include_pad=False),
    _avg("ceil mode", (1, 2, 4, 4), "ci", kernel_size=3, stride=2, padding=1, ceil_mode=True),
    _avg(
        "ceil mode, padding not counted",
        (1, 2, 8, 6),
        "ci",
        kernel_size=3,
        stride=2,
        padding=1,
        ceil_mode=True,
        count_include_pad=False,
    ),
    _avg("divisor", (2, 3, 7, 20), "ci", kernel_size=(2, 3), stride=(1, 2), divisor_override=-5),
    _avg("5x4 stride 3x2", (1, 3, 17, 19), "ci", kernel_size=(5, 4), stride=(3, 2), padding=(2, 1)),
    _avg("channels-last", (2, 18, 9, 8), "ci", last=True, kernel_size=3, stride=2, padding=1, ceil_mode=True),
    _avg("one image", (3, 8, 9), "ci", kernel_size=2),
    _avg("1 pixel", (1, 1, 1, 1), "odd", kernel_size=1),
    _avg("window as large as the image", (2, 3, 5, 4), "odd", kernel_size=(5, 4)),
    _avg("stride past the window", (1, 2, 13, 70), "odd", kernel_size=2, stride=(5, 4)),
    _avg("ceil reaches out", (1, 2, 8, 33), "odd", kernel_size=9, stride=2, ceil_mode=True, padding=4),
    _avg("empty batch", (0, 3, 6, 6), "odd", kernel_size=2),
    _avg("cnn", (64, 64, 22, 22), "bench", kernel_size=2),
    _avg("inception 3x3 stride 1", (1, 192, 35, 35), "bench", kernel_size=3, stride=1, padding=1),
    _avg("vectors of channels", (2, 64, 6, 7), "gpu", last=True, kernel_size=3, stride=1, padding=1),
    _adaptive_max("3x4 of 7x9", (2, 3, 7, 9), "ci", output_size=(3, 4), return_indices=True),
    _adaptive_max("own height", (2, 3, 7, 40), "ci", output_size=(None, 5)),
    _adaptive_max("channels-last", (2, 18, 7, 9), "ci", last=True, output_size=(3, 4), return_indices=True),
    _adaptive_max("one image", (3, 8, 9), "ci", output_size=2),
    _adaptive_max("larger than the image", (1, 2, 3, 4), "odd", output_size=(5, 7)),
    _adaptive_max("no output", (1, 2, 3, 4), "odd", output_size=(0, 2)),
    _adaptive_max("empty batch", (0, 2, 3, 4), "odd", output_size=2),
    _adaptive_max("7x7", (1, 256, 13, 13), "bench", output_size=7),
    _adaptive_max("vectors of channels", (2, 64, 7, 9), "gpu", last=True, output_size=(3, 4)),
    _adaptive_avg("3x4 of 7x9", (2, 3, 7, 9), "ci", output_size=(3, 4)),
    _adaptive_avg("global", (2, 5, 7, 23), "ci", output_size=1),
    _adaptive_avg("own width", (2, 3, 7, 40), "ci", output_size=(3, None)),
    _adaptive_avg("channels-last", (2, 18, 7, 9), "ci", last=True, output_size=(3, 4)),
    _adaptive_avg("one image", (3, 8, 9), "ci", output_size=2),
    _adaptive_avg("larger than the image", (1, 2, 3, 4), "odd", output_size=(5, 7)),
    _adaptive_avg("no output", (1, 2, 3, 4), "odd", output_size=(2, 0)),
    _adaptive_avg("no channels", (2, 0, 3, 4), "odd", output_size=2),
    _adaptive_avg("resnet global", (16, 512, 7, 7), "bench", output_size=1),
    _adaptive_avg("vgg 7x7", (1, 512, 14, 14), "bench", output_size=7),
    _adaptive_avg("vectors of channels", (2, 64, 7, 9), "gpu", last=True, output_size=(3, 4)),
    _lp("p = 2, 2x2", (2, 3, 12, 34), "ci", norm_type=2, kernel_size=2),
    _lp("p = 1", (2, 3, 7, 9), "ci", norm_type=1.0, kernel_size=(2, 3), stride=2),
    _lp("p = 4, 3x3 stride 2, ceil mode", (2, 3, 8, 9), "ci", norm_type=4, kernel_size=3, stride=2, ceil_mode=True),
    _lp("p = inf", (2, 3, 8, 19), "ci", norm_type=float("inf"), kernel_size=2),
    _lp("p = -inf", (2, 3, 8, 9), "ci", norm_type=-float("inf"), kernel_size=3, stride=1),
    _lp("channels-last", (2, 18, 9, 8), "ci", last=True, norm_type=2, kernel_size=3, stride=2),
    _lp("one image", (3, 8, 9), "ci", norm_type=2, kernel_size=2),
    _lp("1 pixel", (1, 1, 1, 1), "odd", norm_type=2, kernel_size=1),
    _lp("empty batch", (0, 3, 6, 6), "odd", norm_type=2, kernel_size=2),
    _lp("2x2", (64, 32, 26, 26), "bench", norm_type=2, kernel_size=2),
    _lp("vectors of channels", (2, 64, 8, 6), "gpu", last=True, norm_type=2, kernel_size=2),
)
