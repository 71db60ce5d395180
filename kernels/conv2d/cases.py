"""Calls of conv2d and conv_transpose2d that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

from kernels.case import Case


def _conv(
    name: str,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    *tags: str,
    bias: bool = True,
    last: bool = False,
    **arguments: Any,
) -> Case:
    shapes = {"x": x, "weight": weight} | ({"bias": (weight[0],)} if bias else {})
    fan_in = weight[1] * weight[2] * weight[3]
    return Case("conv2d", name, shapes, arguments, tags, last, {"weight": fan_in**-0.5})


def _transpose(
    name: str,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    *tags: str,
    bias: bool = True,
    last: bool = False,
    **arguments: Any,
) -> Case:
    outputs = weight[1] * arguments.get("groups", 1)
    shapes = {"x": x, "weight": weight} | ({"bias": (outputs,)} if bias else {})
    return Case("conv_transpose2d", name, shapes, arguments, tags, last, {"weight": weight[0] ** -0.5})


CASES = (
    # Every argument at least once, small.
    _conv("3x3", (2, 5, 9, 8), (7, 5, 3, 3), "ci"),
    _conv("3x3 same relu", (2, 16, 11, 11), (32, 16, 3, 3), "ci", padding="same", activation="relu"),
    _conv("1x1 no bias", (3, 20, 6, 5), (33, 20, 1, 1), "ci", bias=False),
    # Some of the places of its data gradient meet no tap at all.
    _conv("1x1 stride (2, 3)", (2, 5, 8, 11), (4, 5, 1, 1), "odd", stride=(2, 3)),
    _conv(
        "5x3 stride 2x3 dilation 2x1",
        (2, 4, 19, 17),
        (6, 4, 5, 3),
        "ci",
        stride=(2, 3),
        padding=(3, 1),
        dilation=(2, 1),
    ),
    _conv("groups 3 gelu", (2, 9, 8, 7), (12, 3, 3, 3), "ci", groups=3, padding=1, activation="gelu"),
    _conv("depthwise silu", (2, 21, 10, 9), (21, 1, 3, 3), "ci", groups=21, padding=1, activation="silu"),
    _conv("depthwise multiplier stride 2", (2, 6, 11, 12), (18, 1, 5, 5), "ci", groups=6, padding=2, stride=2),
    _conv(
        "same_upper stride 2 tanh", (1, 3, 8, 9), (4, 3, 4, 3), "ci", stride=2, padding="same_upper", activation="tanh"
    ),
    _conv("same_lower sigmoid", (1, 3, 8, 9), (4, 3, 4, 2), "ci", padding="same_lower", activation="sigmoid"),
    _conv("uneven padding", (1, 3, 7, 6), (5, 3, 3, 3), "ci", padding=((2, 0), (1, 3))),
    _conv("channels-last", (2, 18, 9, 8), (20, 18, 3, 3), "ci", last=True, padding=1),
    _conv("channels-last depthwise", (2, 17, 9, 8), (17, 1, 3, 3), "ci", last=True, padding=1, groups=17, stride=2),
    _conv("one image", (4, 9, 8), (5, 4, 3, 3), "ci"),
    # Awkward sizes.
    _conv("1 pixel", (1, 1, 1, 1), (1, 1, 1, 1), "odd"),
    _conv("kernel as large as the image", (2, 3, 5, 4), (6, 3, 5, 4), "odd"),
    _conv("stride past the kernel", (1, 2, 13, 14), (3, 2, 2, 2), "odd", stride=(5, 4)),
    _conv("padding past the kernel", (1, 2, 4, 3), (3, 2, 2, 2), "odd", padding=(4, 5)),
    _conv("1 x W", (2, 3, 1, 37), (35, 3, 1, 7), "odd", padding=(0, 3)),
    _conv("many channels", (1, 70, 5, 6), (67, 70, 3, 3), "odd", padding=1),
    _conv("groups of one output", (2, 8, 6, 6), (4, 2, 3, 3), "odd", groups=4),
    _conv("empty batch", (0, 3, 6, 6), (4, 3, 3, 3), "odd"),
    # In vectors of channels, and in planes whose rows are whole sectors.
    _conv("vectors of channels", (2, 64, 8, 16), (64, 64, 3, 3), "gpu", last=True, padding=1, activation="relu"),
    _conv("vectors of channels, stride 2", (2, 64, 8, 16), (64, 64, 2, 2), "gpu", last=True, stride=2),
    _conv("vectors of channels, depthwise", (2, 64, 8, 16), (64, 1, 3, 3), "gpu", last=True, padding=1, groups=64),
    _conv("planes", (2, 64, 8, 16), (64, 64, 3, 3), "gpu", padding=1, activation="relu"),
    _conv("planes 1x1", (2, 64, 8, 16), (64, 64, 1, 1), "gpu"),
    _conv("planes, depthwise", (2, 64, 8, 16), (64, 1, 3, 3), "gpu", padding=1, groups=64),
    # Networks: ResNet, MobileNet, a text recogniser (CRNN), the article's CNN.
    _conv("resnet 3x3 64", (1, 64, 56, 56), (64, 64, 3, 3), "bench", padding=1),
    _conv("resnet 3x3 128", (1, 128, 28, 28), (128, 128, 3, 3), "bench", padding=1),
    _conv("resnet 3x3 256", (1, 256, 14, 14), (256, 256, 3, 3), "bench", padding=1),
    _conv("resnet 3x3 512", (1, 512, 7, 7), (512, 512, 3, 3), "bench", padding=1),
    _conv("resnet 1x1 256-64", (1, 256, 56, 56), (64, 256, 1, 1), "bench"),
    _conv("resnet 7x7 stride 2", (1, 3, 224, 224), (64, 3, 7, 7), "bench", stride=2, padding=3),
    _conv("resnet 3x3 stride 2", (16, 64, 12, 12), (64, 64, 3, 3), "bench", stride=2, padding=1),
    _conv("mobilenet depthwise", (1, 96, 56, 56), (96, 1, 3, 3), "bench", padding=1, groups=96),
    _conv("mobilenet 1x1 960-160", (1, 960, 7, 7), (160, 960, 1, 1), "bench"),
    _conv("crnn 3x3", (8, 64, 16, 50), (128, 64, 3, 3), "bench", padding=1, activation="relu"),
    _conv("cnn 1", (64, 1, 28, 28), (32, 1, 3, 3), "bench", activation="relu"),
    _conv("cnn 2", (64, 32, 13, 13), (64, 32, 3, 3), "bench", activation="relu"),
    _conv("cnn 3", (64, 64, 5, 5), (64, 64, 3, 3), "bench", activation="relu"),
    _transpose("3x3", (2, 5, 6, 7), (5, 4, 3, 3), "ci"),
    _transpose("4x4 stride 2", (2, 20, 5, 6), (20, 18, 4, 4), "ci", stride=2, padding=1),
    _transpose(
        "output padding dilation",
        (1, 3, 4, 5),
        (3, 5, 3, 2),
        "ci",
        stride=(2, 3),
        padding=(1, 0),
        output_padding=(1, 2),
        dilation=(2, 1),
    ),
    _transpose("groups no bias", (2, 6, 5, 4), (6, 5, 3, 3), "ci", groups=3, bias=False),
    _transpose("channels-last", (2, 18, 5, 4), (18, 17, 3, 3), "ci", last=True, stride=2),
    _transpose("one image", (4, 5, 6), (4, 3, 2, 2), "ci", stride=2),
    _transpose("stride past the kernel", (1, 2, 4, 3), (2, 3, 2, 2), "odd", stride=3),
    _transpose("1 pixel", (1, 1, 1, 1), (1, 1, 1, 1), "odd"),
    _transpose("empty batch", (0, 3, 4, 4), (3, 2, 3, 3), "odd"),
    _transpose("vectors of channels", (2, 64, 8, 16), (64, 64, 2, 2), "gpu", last=True, stride=2),
    _transpose("planes", (2, 64, 8, 16), (64, 64, 3, 3), "gpu", padding=1),
    _transpose("upsampling 4x4 stride 2", (1, 128, 28, 28), (128, 64, 4, 4), "bench", stride=2, padding=1),
)
