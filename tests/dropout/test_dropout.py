"""Philox and dropout: known answers, the same mask everywhere, the right share, and nothing dropped leaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels import random
from kernels.dropout import numba_cpu
from kernels.runtime.numba_cpu import jit
from kernels.simd import pointer

#: Counter, key and words of Philox4x32-10 as published with Random123.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, words", KNOWN)
def test_philox_known_answers(counter: Any, key: Any, words: Any):
    as_numpy = random.philox(*[tuple(np.array([n]) for n in numbers) for numbers in (counter, key)])
    assert tuple(int(w[0]) for w in as_numpy) == words
    as_torch = random.philox(*[tuple(torch.tensor([n]) for n in numbers) for numbers in (counter, key)])
    assert tuple(int(w) for w in as_torch) == words
    assert random.philox_compiled(counter, key) == words


keep_factors = random.keep_factors


@jit
def factors(start, count, threshold, seed, stream, out):
    """keep_factors on an array."""
    keep_factors(start, count, threshold, seed, stream, 2.0, pointer(out))


@pytest.mark.parametrize("seed, stream", [(0, 0), (-7, 3), (2**62, 2**40)])
def test_any_part_of_the_mask_is_the_mask(seed: int, stream: int):
    mask = random.keep_mask((800,), 0.3, seed, stream)
    for start in (0, 1, 2, 3, 4, 101, 399):
        for count in (0, 1, 2, 3, 4, 5, 6, 7, 9, 200):
            out = np.full(count + 1, -1.0, np.float32)
            factors(start, count, random.drop_threshold(0.3), seed, stream, out)
            np.testing.assert_array_equal(out[:-1], 2.0 * mask[start : start + count])
            assert out[-1] == -1


def test_seeds_and_streams_are_apart():
    masks = [
        random.keep_mask((512,), 0.5, seed, stream) for seed, stream in ((0, 0), (1, 0), (0, 1), (1, 1), (2**32, 0))
    ]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert 180 < (a == b).sum() < 332


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_is_p(p: float):
    y = kernels.dropout(np.ones(100_000, np.float32), p, seed=5)
    assert abs((y == 0).mean() - p) < 0.006
    np.testing.assert_array_equal(np.unique(y), np.array([0, 1 / (1 - p)], np.float32))


@pytest.mark.parametrize("shape", [(7,), (3, 5, 41), (2000,)])
def test_every_backend_and_layout_has_the_same_bits(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = kernels.dropout(x, 0.4, seed=-3, stream=2, backend="reference")
    mask = random.keep_mask(shape, 0.4, -3, 2)
    np.testing.assert_array_equal(expected != 0, mask)
    for backend in ("numba", "torch"):
        np.testing.assert_array_equal(kernels.dropout(x, 0.4, seed=-3, stream=2, backend=backend), expected)
    turned = np.asfortranarray(x)
    np.testing.assert_array_equal(kernels.dropout(turned, 0.4, seed=-3, stream=2), expected)
    for threads in (2, 3):
        monkeypatch.setattr(numba_cpu, "threads_for", lambda work, grain, threads=threads: threads)
        np.testing.assert_array_equal(kernels.dropout(x, 0.4, seed=-3, stream=2), expected)
    tensor = torch.from_numpy(x).requires_grad_()
    y = kernels.dropout(tensor, 0.4, seed=-3, stream=2)
    np.testing.assert_array_equal(y.detach().numpy(), expected)
    y.backward(torch.ones_like(y))
    assert tensor.grad is not None
    np.testing.assert_array_equal(tensor.grad.numpy(), mask * np.float32(1 / 0.6))


@pytest.mark.parametrize("backend", ["numba", "reference", "torch"])
def test_all_or_nothing(backend: str):
    x = np.array([1.0, np.nan, np.inf, -2.0], np.float32)
    np.testing.assert_array_equal(kernels.dropout(x, 0.0, seed=1, backend=backend), x)
    np.testing.assert_array_equal(kernels.dropout(x, 1.0, seed=1, backend=backend), np.zeros(4))
    assert kernels.dropout(x, 0.5, training=False, backend=backend) is x


def test_seeds_are_drawn_from_the_global_generators():
    x = torch.ones(200)
    torch.manual_seed(1)
    first, second = kernels.dropout(x), kernels.dropout(x)
    torch.manual_seed(1)
    assert torch.equal(kernels.dropout(x), first) and not torch.equal(first, second)
    np.random.seed(1)
    drawn = kernels.dropout(x.numpy())
    np.random.seed(1)
    np.testing.assert_array_equal(kernels.dropout(x.numpy()), drawn)
    as_array = kernels.dropout(x.numpy(), seed=np.asarray(7))
    np.testing.assert_array_equal(as_array, kernels.dropout(x.numpy(), seed=7))


@pytest.mark.parametrize(
    "arguments, kind, text",
    [
        ({"p": 1.5}, ValueError, r"dropout: p must lie in \[0, 1\], got 1.5"),
        ({"p": -0.1, "training": False}, ValueError, r"dropout: p must lie in \[0, 1\], got -0.1"),
        ({"seed": 1.5}, TypeError, "dropout: seed must be an int, got 1.5"),
        ({"seed": 2**64}, ValueError, "dropout: seed must fit into 64 bits"),
        ({"seed": np.zeros(2, np.int64)}, ValueError, r"dropout: seed must have shape \(\)"),
        ({"seed": np.zeros((), np.float32)}, TypeError, "dropout: seed must have dtype int64"),
        ({"seed": 1, "stream": -1}, ValueError, "dropout: stream must be at least 0, got -1"),
        ({"training": 1}, TypeError, "dropout: training must be True or False"),
    ],
)
def test_errors(arguments: dict[str, Any], kind: type[Exception], text: str):
    with pytest.raises(kind, match=text):
        kernels.dropout(np.ones(3, np.float32), **arguments)


def test_explain_of_a_call_that_runs_nothing():
    message = "^explain: arguments must make dropout run a kernel, got a call that runs none$"
    with pytest.raises(ValueError, match=message):
        kernels.explain("dropout", np.ones(3, np.float32), training=False)
