"""conv2d_max_pool2d is max_pool2d of conv2d: ties, NaN, padding; which kernel runs, its bands, and what it keeps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.conv2d_max_pool2d import bands
from kernels.conv2d_max_pool2d.bands import BASE, BEGIN, BOTTOM, END, IMAGE, IMAGES, KEEP, TOP, Windows, plan_bands
from kernels.op import OPS
from tests.support import matrix, memory

BACKENDS = ("numba", "torch", "reference")


def arrays(x: tuple[int, ...], weight: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    fan_in = np.prod(weight[1:]) ** 0.5
    shapes = {"x": x, "weight": weight, "bias": weight[:1]}
    return {n: (rng.standard_normal(s) / (fan_in if n == "weight" else 1)).astype(dtype) for n, s in shapes.items()}


def whole(dtype: str = "float32", seed: int = 0, outputs: int = 40) -> dict[str, Any]:
    """Whole numbers, whose sums are exact, and of which many tie."""
    rng = np.random.default_rng(seed)
    shapes = {"x": (2, 40, 9, 11), "weight": (outputs, 40, 3, 3), "bias": (outputs,)}
    return {n: rng.integers(-1, 2, s).astype(dtype) for n, s in shapes.items()}


def with_torch(given: dict[str, Any], activation: str | None, size: Any, stride: Any, padding: Any) -> list[np.ndarray]:
    """torch's own three ops on the same numbers: output and gradients for a gradient of 1, 2, 3, ..."""
    tensors = {n: torch.from_numpy(a).requires_grad_() for n, a in given.items()}
    y = F.conv2d(**tensors, padding=1)
    y = F.max_pool2d(y if activation is None else getattr(torch, activation)(y), size, stride, padding)
    steps = torch.arange(1, y.numel() + 1, dtype=y.dtype).view(y.shape) % 5 + 1
    return [y.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(y, tuple(tensors.values()), steps))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("windows", [(2, None, 0), (3, 2, 0), (3, 2, 1), ((3, 2), (1, 3), (1, 0))])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("outputs", [3, 20, 40])
def test_ties_go_to_the_first(backend: str, windows: Any, activation: str | None, outputs: int):
    """Every sum is a whole number, exact in every kernel, and its gradients too: not one bit may differ."""
    given = whole(outputs=outputs)
    expected = with_torch(given, activation, *windows)
    names = dict(zip(("pool_kernel_size", "pool_stride", "pool_padding"), windows))
    y, pullback = kernels.vjp("conv2d_max_pool2d", **given, padding=1, activation=activation, **names, backend=backend)
    steps = (np.arange(1, y.size + 1).reshape(y.shape) % 5 + 1).astype(y.dtype)
    for found, wanted in zip((y, *pullback(steps)), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shapes", [((2, 3, 9, 12), (20, 3, 3, 3)), ((2, 40, 12, 12), (40, 40, 3, 3))])
def test_what_is_not_finite_goes_on(backend: str, value: float, shapes: Any):
    """One such input, also where Winograd's transforms would spread it: everything else stays what it is."""
    given = arrays(*shapes)
    given["x"][1, 1, 4, 5] = value
    tensors = {n: torch.from_numpy(a) for n, a in given.items()}
    for activation, size, stride in itertools.product((None, "relu"), (2, 3), (2, 1)):
        y = F.conv2d(**tensors, padding=1)
        wanted = F.max_pool2d(y if activation is None else torch.relu(y), size, stride).numpy()
        found = kernels.conv2d_max_pool2d(
            **given, padding=1, activation=activation, pool_kernel_size=size, pool_stride=stride, backend=backend
        )
        np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_several_nan_the_last_one_wins(backend: str):
    given = arrays((1, 1, 4, 4), (17, 1, 1, 1))
    given["x"][0, 0, :2, :2] = np.nan
    _, pullback = kernels.vjp("conv2d_max_pool2d", **given, pool_kernel_size=2, backend=backend)
    grad_output = np.zeros((1, 17, 2, 2), np.float32)
    grad_output[:, :, 0, 0] = 1
    grad_x, _, grad_bias = pullback(grad_output)
    assert np.argwhere(grad_x[0, 0]).tolist() == [[1, 1]]
    np.testing.assert_array_equal(grad_bias, np.ones(17))


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_of_the_windows_never_wins(backend: str):
    given = arrays((1, 2, 5, 5), (19, 2, 1, 1)) | {"bias": np.full(19, -50, np.float32)}
    y = kernels.conv2d_max_pool2d(**given, pool_kernel_size=3, pool_stride=2, pool_padding=1, backend=backend)
    assert (y < -40).all()


# ----- which kernel ------------------------------------------------------------------------------------------------


def described(capsys: Any, given: dict[str, Any], **arguments: Any) -> str:
    text = str(kernels.explain("conv2d_max_pool2d", **given, **({"pool_kernel_size": 2} | arguments)))
    capsys.readouterr()
    return next(line for line in text.splitlines() if line.lstrip().startswith("numba"))


def test_explain_names_the_kernel(capsys):
    few = arrays((64, 1, 28, 28), (32, 1, 3, 3))
    assert "gather kernel, pooled in cache" in described(capsys, few)
    many = arrays((2, 64, 20, 20), (64, 64, 3, 3))
    assert "winograd kernel, pooled in cache" in described(capsys, many)
    assert "gather kernel" in described(capsys, {n: a.astype("float64") for n, a in many.items()})
    assert "gather kernel" in described(capsys, many, stride=2)
    assert "one plane kernel, up to" in described(capsys, arrays((4, 1, 9, 9), (4, 1, 3, 3)))
    assert "), then max_pool2d" in described(capsys, arrays((4, 1, 9, 9), (4, 1, 3, 3)))
    depthwise = arrays((2, 20, 9, 9), (20, 1, 3, 3))
    assert "conv2d (one plane kernel" in described(capsys, depthwise, groups=20)
    assert ", then max_pool2d" in described(capsys, arrays((1, 2, 20, 20), (20, 2, 3, 3)), pool_kernel_size=17)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize(
    ("shapes", "arguments"),
    [
        (((16, 1, 28, 28), (32, 1, 3, 3)), {}),
        (((24, 64, 30, 30), (64, 64, 3, 3)), {"padding": 1}),
        (((1, 8, 90, 80), (64, 8, 5, 5)), {"pool_kernel_size": 3, "pool_stride": 2}),
    ],
)
def test_the_convolution_is_never_in_memory(shapes: Any, arguments: Any, trains: bool):
    """The largest piece of memory that a fused forward asks for is a fraction of the convolution's result."""
    given = arrays(*shapes)
    captured = matrix.capture("conv2d_max_pool2d", **given, **({"pool_kernel_size": 2} | arguments), activation="relu")
    problem: Any = captured.problem(trains)
    sizes: list[int] = []

    def watch(shape: Any, dtype: Any) -> Any:
        made = memory.poisoned(0xFF)(shape, dtype)
        sizes.append(made.nbytes)
        return made

    matrix.backends_of("conv2d_max_pool2d")
    with memory.allocator(watch):
        OPS["conv2d_max_pool2d"].implementations["numba"].forward(problem, *captured.inputs)
    whole_map = problem.pooling.x.nbytes
    assert max(sizes) < 0.6 * whole_map


def test_training_keeps_bytes():
    given = arrays((2, 1, 28, 28), (32, 1, 3, 3))
    problem: Any = matrix.capture("conv2d_max_pool2d", **given, pool_kernel_size=2, activation="relu").problem(True)
    output, winners, sums = problem.results()
    assert winners.nbytes == output.size and winners.dtype == "uint8" and sums is None
    assert problem.saved() == ("x", "weight", "bias", "winners", "output")
    problem = matrix.capture("conv2d_max_pool2d", **given, pool_kernel_size=2, activation="gelu").problem(True)
    assert problem.results()[2] == problem.results()[0]
    assert matrix.capture("conv2d_max_pool2d", **given, pool_kernel_size=2).problem().results()[1:] == (None, None)


# ----- bands -------------------------------------------------------------------------------------------------------


def windows(map_rows: int, map_columns: int, height: int, down: int, above: int) -> Windows:
    rows = (map_rows + above - height) // down + 1 + (above > 0)
    seen = min(map_rows, (rows - 1) * down - above + height)
    return Windows(rows, 5, height, 2, down, 2, above, 0, seen, map_columns)


@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("most", [1, 30, 200, 3000])
@pytest.mark.parametrize(
    "form", [(11, 10, 2, 2, 0), (13, 12, 3, 2, 0), (30, 9, 3, 2, 1), (17, 6, 5, 1, 2), (20, 4, 2, 5, 0)]
)
def test_bands_pool_every_window_once(form: Any, most: int, parts: int, multiple: int):
    """Walk the bands as the kernels do: each window finds its rows in scratch, and in order."""
    w, images = windows(*form), 3
    plan = plan_bands(w, images, most, parts, multiple)
    assert plan.parts[0] == 0 and plan.parts[-1] == len(plan.table) and len(plan.parts) == parts + 1
    pooled = []
    for first, last in itertools.pairwise(plan.parts.tolist()):
        kept: tuple[int, int, int] | None = None  # image and rows that were carried over
        for band in plan.table[first:last].tolist():
            assert band[TOP] % multiple == 0 and band[BASE] <= band[TOP] <= band[BOTTOM] <= w.map_rows
            if band[BASE] < band[TOP]:
                assert kept == (band[IMAGE], band[BASE], band[TOP])
            if band[IMAGES] > 1:
                assert (band[TOP], band[BOTTOM]) == (0, w.map_rows)
            for image in range(band[IMAGE], band[IMAGE] + band[IMAGES]):
                for i in range(band[BEGIN], band[END]):
                    top, bottom = max(0, i * w.down - w.above), min(w.map_rows, i * w.down - w.above + w.height)
                    assert band[BASE] <= top < bottom <= band[BOTTOM]
                    pooled.append((image, i))
            kept = (band[IMAGE], band[KEEP], band[BOTTOM]) if band[KEEP] < band[BOTTOM] else None
            rows = band[BOTTOM] - band[BASE]
            assert band[IMAGES] * rows * w.map_columns <= plan.room <= plan.carried + plan.block
            assert (band[BOTTOM] - band[KEEP]) * w.map_columns <= plan.carried
    assert pooled == [(image, i) for image in range(images) for i in range(w.rows)]


def test_bands_compute_no_row_twice():
    w = windows(200, 7, 3, 2, 1)
    plan = plan_bands(w, 2, 100, 1)
    rows = [(b[IMAGE], row) for b in plan.table.tolist() for row in range(b[TOP], b[BOTTOM])]
    assert rows == [(image, row) for image in range(2) for row in range(200)]


def test_what_no_window_sees_is_not_computed():
    given = arrays((2, 3, 13, 13), (20, 3, 3, 3))
    problem: Any = matrix.capture("conv2d_max_pool2d", **given, pool_kernel_size=2).problem()
    assert problem.pooling.x.shape == (2, 20, 11, 11) and problem.seen == (2, 20, 10, 10)
    assert bands.windows_of(problem).map_pixels == 100


# ----- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pool_kernel_size": 0}, ValueError, "pool_kernel_size must be at least 1, got 0"),
        ({"pool_kernel_size": "2"}, TypeError, "pool_kernel_size must be an int or a pair of ints, got '2' (str)"),
        ({"pool_stride": 0}, ValueError, "pool_stride must be at least 1, got 0"),
        ({"pool_padding": 2}, ValueError, "pool_padding must be at most half of pool_kernel_size (2, 2), got (2, 2)"),
        ({"pool_ceil_mode": 1}, TypeError, "pool_ceil_mode must be True or False, got 1 (int)"),
        (
            {"pool_kernel_size": 9}, ValueError,
            "pool_kernel_size must fit into the padded convolution (2, 4, 7, 6) and leave an output of at least 1 x 1, "
            "got an output of 0 x 0",
        ),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"activation": "softmax"}, ValueError, "activation must be one of None, 'relu', 'gelu', 'silu', 'tanh', "
         "'sigmoid', got 'softmax'"),
        ({"bias": np.zeros(5, np.float32)}, ValueError,
         "bias must have shape (4,) (one value for each output channel of weight), got (5,)"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(arguments: Any, error: type[Exception], message: str):
    given = arrays((2, 3, 9, 8), (4, 3, 3, 3)) | {"pool_kernel_size": 2} | arguments
    with pytest.raises(error) as caught:
        kernels.conv2d_max_pool2d(**given)
    assert str(caught.value) == f"conv2d_max_pool2d: {message}"


def test_the_windows_size_must_be_given():
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'pool_kernel_size'"):
        kernels.conv2d_max_pool2d(**arrays((2, 3, 9, 8), (4, 3, 3, 3)))
