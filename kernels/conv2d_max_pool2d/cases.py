"""Calls of conv2d_max_pool2d that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

from kernels.case import Case

Shape = tuple[int, ...]


def _case(
    name: str, x: Shape, weight: Shape, tag: str, pool: Any, *, bias: bool = True, last: bool = False, **arguments: Any
) -> Case:
    shapes = {"x": x, "weight": weight} | ({"bias": (weight[0],)} if bias else {})
    fan_in = weight[1] * weight[2] * weight[3]
    given = {"pool_kernel_size": pool} | arguments
    return Case("conv2d_max_pool2d", name, shapes, given, (tag,), last, {"weight": fan_in**-0.5})


CASES = (
    # Every argument at least once, small.
    _case("3x3, 2x2 windows", (2, 5, 10, 9), (7, 5, 3, 3), "ci", 2),
    _case("relu", (3, 1, 14, 14), (33, 1, 3, 3), "ci", 2, activation="relu"),
    _case("5x5 stride 2, 3x3 stride 2", (2, 3, 23, 21), (20, 3, 5, 5), "ci", 3, stride=2, padding=2, pool_stride=2),
    _case(
        "windows with padding", (2, 4, 11, 12), (18, 4, 3, 3), "ci", 3,
        padding=1, activation="relu", pool_stride=2, pool_padding=1,
    ),
    _case("ceil mode", (2, 4, 10, 9), (6, 4, 3, 3), "ci", (3, 2), pool_stride=(2, 3), pool_ceil_mode=True),
    _case("gelu, no bias", (2, 4, 9, 10), (17, 4, 2, 2), "ci", 2, bias=False, activation="gelu"),
    _case("silu, 3x3 stride 1", (2, 3, 7, 8), (5, 3, 3, 3), "ci", 3, padding="same", activation="silu", pool_stride=1),
    _case("tanh, dilation", (1, 3, 12, 13), (9, 3, 3, 3), "ci", 2, dilation=2, activation="tanh"),
    _case("sigmoid, groups", (2, 8, 9, 9), (12, 4, 3, 3), "ci", 2, groups=2, activation="sigmoid"),
    _case("many channels", (2, 40, 10, 11), (70, 40, 3, 3), "ci", 2, padding=1, activation="relu"),
    _case("many channels, 3x3 stride 2", (3, 36, 13, 13), (64, 36, 3, 3), "ci", 3, padding=1, pool_stride=2),
    _case("channels-last", (2, 18, 9, 8), (20, 18, 3, 3), "ci", 2, last=True, padding=1, activation="relu"),
    _case("channels-last gelu", (2, 5, 9, 8), (34, 5, 3, 3), "ci", 3, last=True, activation="gelu", pool_stride=2),
    _case("depthwise", (2, 19, 9, 10), (19, 1, 3, 3), "ci", 2, groups=19, padding=1, activation="relu"),
    _case("one image", (4, 9, 8), (5, 4, 3, 3), "ci", 2),
    # Awkward sizes.
    _case("1 pixel", (1, 1, 1, 1), (1, 1, 1, 1), "odd", 1),
    _case("two outputs", (2, 4, 9, 8), (2, 4, 3, 3), "odd", 2, activation="silu"),
    _case("a window of the whole", (2, 3, 7, 6), (6, 3, 3, 3), "odd", (5, 4), activation="relu"),
    _case("a window of more than 256 taps", (1, 2, 19, 20), (5, 2, 2, 2), "odd", (17, 16)),
    _case("stride past the windows", (1, 2, 15, 16), (4, 2, 2, 2), "odd", 2, pool_stride=(5, 4)),
    _case("uneven padding", (1, 3, 8, 7), (5, 3, 3, 3), "odd", 2, padding=((2, 0), (1, 3)), pool_padding=1),
    _case("1 x W", (2, 3, 1, 39), (35, 3, 1, 7), "odd", (1, 2), padding=(0, 3)),
    _case("a tall image", (1, 2, 150, 60), (34, 2, 3, 3), "odd", 3, activation="relu", pool_stride=2),
    _case("channels-last depthwise", (2, 17, 9, 8), (17, 1, 3, 3), "odd", 2, last=True, padding=1, groups=17),
    _case("empty batch", (0, 3, 6, 6), (4, 3, 3, 3), "odd", 2),
    _case(
        "vectors of channels", (2, 64, 8, 16), (64, 64, 3, 3), "gpu", 2, last=True, padding=1, activation="relu",
    ),
    # Networks: the article's CNN, AlexNet, VGG, ResNet's stem, a text recogniser (CRNN).
    _case("cnn 1", (64, 1, 28, 28), (32, 1, 3, 3), "bench", 2, activation="relu"),
    _case("cnn 2", (64, 32, 13, 13), (64, 32, 3, 3), "bench", 2, activation="relu"),
    _case(
        "alexnet 1", (1, 3, 224, 224), (64, 3, 11, 11), "bench", 3,
        stride=4, padding=2, activation="relu", pool_stride=2,
    ),
    _case("alexnet 2", (1, 64, 27, 27), (192, 64, 5, 5), "bench", 3, padding=2, activation="relu", pool_stride=2),
    _case("alexnet 5", (1, 256, 13, 13), (256, 256, 3, 3), "bench", 3, padding=1, activation="relu", pool_stride=2),
    _case("vgg 1", (1, 64, 112, 112), (64, 64, 3, 3), "bench", 2, padding=1, activation="relu"),
    _case("vgg 2", (1, 64, 56, 56), (64, 64, 3, 3), "bench", 2, padding=1, activation="relu"),
    _case(
        "resnet stem", (1, 3, 224, 224), (64, 3, 7, 7), "bench", 3,
        stride=2, padding=3, activation="relu", pool_stride=2, pool_padding=1,
    ),
    _case("crnn", (8, 64, 16, 50), (128, 64, 3, 3), "bench", 2, padding=1, activation="relu"),
)  # fmt: skip
