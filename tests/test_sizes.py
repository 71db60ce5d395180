"""Sizes that cannot be, and large ones that can: refused at once in one line, or computed at the cost of the result."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import kernels
from tests.support import huge_run, matrix
from tests.support.calls import ROOT


def test_huge_sizes_are_refused_at_once():
    """Every op, each size and argument: nothing hangs while it is planned, and each refusal is one line."""
    assert set(huge_run.FORMS) == set(matrix.OP_NAMES)
    program = [sys.executable, "-m", "tests.support.huge_run"]
    finished = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=600)
    lines = finished.stdout.splitlines()
    wrong = [line for line in lines if line.startswith("wrong: ")]
    assert not wrong, "\n".join(wrong[:50])
    if finished.returncode != 0 or lines[-1:] != [huge_run.DONE]:
        last = lines[-1] if lines else "nothing"
        pytest.fail(f"exit {finished.returncode} in {last}\n{finished.stderr[-3000:]}", pytrace=False)
    assert len(lines) > 3000


def _expanded(kind: str, *shape: int):
    one = np.ones(1, np.float32)
    return np.broadcast_to(one, shape) if kind == "numpy" else torch.from_numpy(one).expand(shape)


@pytest.mark.parametrize("backend", ["numba", "torch", "reference"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_how_results_without_memory_are_refused(kind: str, backend: str):
    few = _expanded(kind, 1, 1, 4, 8)
    what = r"got 32 TiB, shape \(1, 1, 1099511627776, 8\), of query float32 \(1, 1, 1099511627776, 8\) strided, key"
    with pytest.raises(MemoryError, match=f"^attention: results must fit into memory, {what} float32"):
        kernels.attention(_expanded(kind, 1, 1, 2**40, 8), few, few, backend=backend)
    x = _expanded(kind, 1, 1, 3, 3)
    with pytest.raises(MemoryError, match=r"^conv2d: results must fit into memory, got 13.9 EiB, .* padding \(10{9}, "):
        kernels.conv2d(x, x, padding=10**9, backend=backend)
    with pytest.raises(MemoryError, match=r"^conv_transpose2d: results .*, got 14.6 TiB, .* stride \(10{6}, 10{6}"):
        kernels.conv_transpose2d(x, x, stride=10**6, backend=backend)
    with pytest.raises(ValueError, match=r"^relu: x must take less than 2\^47 bytes, got 1 EiB, shape \(2882\d+,\)$"):
        kernels.relu(_expanded(kind, 2**58), backend=backend)


def test_how_gradients_without_memory_are_refused():
    """Of an expanded input, whose gradient is not expanded."""
    arguments = _expanded("numpy", 1, 1, 2**20, 2**20), 2**20
    rule = r"^avg_pool2d: the gradient of x must fit into memory, got 4 TiB, shape \(1, 1, 1048576, 1048576\), of x"
    with pytest.raises(MemoryError, match=rule):
        kernels.vjp("avg_pool2d", *arguments)
    with pytest.raises(MemoryError, match=rule):
        kernels.avg_pool2d(torch.ones(1).expand(1, 1, 2**20, 2**20).requires_grad_(), 2**20)


def test_memory_that_is_missing_on_the_way():
    """Not for the results, but for a copy of what is expanded: in the same style, on a first call and a later one."""
    x, weight = (_expanded("numpy", *shape) for shape in ((1, 2**43), (1, 2**43)))
    for _ in range(2):
        with pytest.raises(MemoryError) as caught:
            kernels.linear(x, weight, backend="torch")
        shapes = re.escape(f"of x {x.shape}, weight {weight.shape}")
        shown = rf"linear: what is made on the way must fit into memory, got Unable to allocate 32.0 TiB .*, {shapes}"
        assert re.fullmatch(shown, str(caught.value)) and caught.value.__suppress_context__


def test_values_of_an_expanded_array():
    """They are looked at once each; the place is that of the first one in the whole array."""
    target = np.broadcast_to(np.array([0, 5])[:, None], (2, 2**40))
    with pytest.raises(IndexError, match=r"^cross_entropy: target must lie in \[0, 2\] .*, got 5 at \(1, 0\)$"):
        kernels.cross_entropy(np.broadcast_to(np.float32(0), (2, 3, 2**40)), target, backend="reference")


CASES = {
    "planes": ((2, 3, 3, 4), (3, 2, 3, 2), 1),
    "one channel": ((1, 1, 4, 3), (1, 1, 3, 3), 1),
    "many channels": ((1, 8, 3, 3), (8, 16, 3, 3), 1),
    "depthwise": ((2, 4, 3, 3), (4, 1, 3, 3), 4),
    "one tap": ((1, 3, 4, 4), (3, 5, 1, 1), 1),
}


@pytest.mark.parametrize("stride", [(7, 5), (100, 60), (3, 10**4), (10**5, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_strides_past_the_filter(name: str, channels_last: bool, stride: tuple[int, int]):
    """conv_transpose2d, and the gradient of conv2d's image: most pixels meet no tap and are the bias, or 0."""
    shape, filters, groups = CASES[name]
    generator = torch.Generator().manual_seed(1)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, dtype=torch.float64, generator=generator).requires_grad_()

    x = random(*shape).detach().to(memory_format=layout).requires_grad_()
    weight, bias = random(*filters), random(filters[1] * groups)
    arguments = {"stride": stride, "padding": (0, 1) if filters[3] > 1 else 0, "groups": groups}
    expected = torch.nn.functional.conv_transpose2d(x, weight, bias, **arguments)
    found = kernels.conv_transpose2d(x, weight, bias, **arguments, backend="numba")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    incoming = random(*expected.shape).detach()
    for a, b in zip(*[torch.autograd.grad(y, (x, weight, bias), incoming) for y in (found, expected)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    image = random(*expected.shape).detach().to(memory_format=layout).requires_grad_()
    sums = [f(image, weight, **arguments) for f in (kernels.conv2d, torch.nn.functional.conv2d)]
    gradients = [torch.autograd.grad(y, image, torch.ones_like(y))[0] for y in sums]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["numba", "torch", "reference"])
def test_strides_past_the_image(backend: str):
    """One output, however far the stride. (In torch's own function, gradients of such a call crash the process.)"""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, 3, 6, 7), generator=generator).requires_grad_()
    weight = torch.randn((4, 3, 3, 2), generator=generator).requires_grad_()
    expected = torch.nn.functional.conv2d(x, weight, stride=9, padding=1)
    found = kernels.conv2d(x, weight, stride=(10**5, 2**31 - 1), padding=1, backend=backend)
    torch.testing.assert_close(found, expected)
    for a, b in zip(*[torch.autograd.grad(y.sum(), (x, weight)) for y in (found, expected)], strict=True):
        torch.testing.assert_close(a, b)


def test_a_stride_that_torch_crashes_at():
    x, weight = torch.ones(1, 1, 1, 40000), torch.ones(1, 1, 1, 2)
    assert kernels.conv2d(x, weight, stride=(1, 30000), backend="torch").tolist() == [[[[2.0, 2.0]]]]
    rule = "torch crashes in gradients of horizontal strides above 4096"
    for op in (kernels.conv2d, kernels.conv2d_max_pool2d):
        more = {"pool_kernel_size": 1} if op is kernels.conv2d_max_pool2d else {}
        with pytest.raises(kernels.BackendError, match=f"backend 'torch' cannot run .*: on the CPU {rule}$"):
            op(x.requires_grad_(), weight, stride=(1, 30000), backend="torch", **more)
    rule = "torch crashes in horizontal strides above 4096"
    with pytest.raises(kernels.BackendError, match=f"backend 'torch' cannot run .*: on the CPU {rule}$"):
        kernels.conv_transpose2d(weight, weight, stride=(1, 10000), backend="torch")
    found = kernels.conv2d(x.requires_grad_(), weight, stride=(1, 30000))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.sum() == 4 and gradient[0, 0, 0, [0, 1, 30000, 30001]].tolist() == [1.0] * 4


def test_a_filter_past_the_image():
    """Each row of the output meets few of its taps, all others the margin."""
    for arrays, arguments in (
        (((1, 2, 3, 2), (2, 1, 3001, 1)), {"stride": 2, "padding": 1}),
        (((1, 2, 3, 2), (2, 9, 3001, 1)), {"stride": 1}),
    ):
        x, weight = (torch.randn(shape, dtype=torch.float64) for shape in arrays)
        expected = torch.nn.functional.conv_transpose2d(x, weight, **arguments)
        torch.testing.assert_close(kernels.conv_transpose2d(x, weight, **arguments, backend="numba"), expected)


def test_operations_of_attention_are_counted_without_counting():
    """The pairs of queries and keys that see each other, beside a loop over them."""
    for queries, keys in ((5, 7), (7, 5), (1, 6), (6, 1), (4, 4)):
        query, key = np.ones((1, 1, queries, 3), np.float32), np.ones((1, 1, keys, 3), np.float32)
        for causal in (None, "top_left", "bottom_right"):
            for window in (None, 0, 2, (None, 1), (1, None), (0, 9), (9, 0)):
                left, right = (None, None) if window is None else window if isinstance(window, tuple) else (window,) * 2
                right = 0 if causal else right
                offset = keys - queries if causal == "bottom_right" else 0
                pairs = sum(
                    (left is None or j >= i + offset - left) and (right is None or j <= i + offset + right)
                    for i in range(queries)
                    for j in range(keys)
                )
                problem = kernels.explain("attention", query, key, key, causal=causal, window=window).problem
                assert problem.flops() == 2 * pairs * (3 + 3)


@pytest.mark.parametrize("causal", [None, "top_left", "bottom_right"])
@pytest.mark.parametrize("queries, keys", [(4, 4), (40, 33), (1, 50)])
def test_windows_past_all_keys(queries: int, keys: int, causal: str | None):
    """sys.maxsize for no limit: added to a position it would be a negative one."""
    generator = np.random.default_rng(1)
    arrays = [generator.standard_normal((1, 2, n, 8)).astype(np.float32) for n in (queries, keys, keys)]
    incoming = np.ones_like(arrays[0])
    for huge, usual in (((sys.maxsize,) * 2, (None, None)), ((sys.maxsize, 1), (None, 1)), ((1, 2**31), (1, None))):
        found = [kernels.vjp("attention", *arrays, window=w, causal=causal, backend="numba") for w in (huge, usual)]
        for a, b in zip(*[(y, *pullback(incoming)[:3]) for y, pullback in found], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("backend", ["numba", "torch", "reference"])
@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_an_ignored_index_that_its_type_does_not_hold(dtype: str, backend: str):
    """Cut down to the type it would be class 0."""
    x, target = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32), np.zeros(3, dtype)
    weight = np.eye(4, dtype=np.float32)
    expected = kernels.cross_entropy(x, target, backend=backend), kernels.linear_cross_entropy(x, weight, target)
    for index in (2**8, 2**32, -(2**32), 2**63 - 1, -(2**63)):
        found = (
            kernels.cross_entropy(x, target, ignore_index=index, backend=backend),
            kernels.linear_cross_entropy(x, weight, target, ignore_index=index, backend=backend),
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_helpers_refuse_them_too():
    wide = _expanded("numpy", 2**31, 2**10)
    for call, error, rule in (
        (lambda: kernels.position_encoding(2**40, 2), MemoryError, "the result must fit .*, got 24 TiB, .* d_model 2"),
        (lambda: kernels.position_encoding(2**62, 0), MemoryError, r"the result must fit .*, of length 4611\d+, .* 0"),
        (lambda: kernels.alibi_slopes(2**62), ValueError, r"heads must be at most 2147483647, got 4611\d+"),
        (lambda: kernels.alibi_slopes(1.5), TypeError, r"heads must be an int, got 1.5 \(float\)"),
        (lambda: kernels.alibi_slopes(0), ValueError, "heads must be at least 1, got 0"),
        (lambda: kernels.pack_linear(wide), MemoryError, "the packed weight must fit into memory, got 8 TiB, .*"),
    ):
        with pytest.raises(error) as caught:
            call()
        assert re.fullmatch(rf"(position_encoding|alibi_slopes|pack_linear): {rule}", str(caught.value))
    np.testing.assert_array_equal(kernels.alibi_slopes(np.int64(8)), kernels.alibi_slopes(8))
