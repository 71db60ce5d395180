"""cross_entropy in CUDA C++, executed on the CPU: every block, many rows, wrong classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernels
from kernels.runtime.row_blocks import RowBlock, use_row_block
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu
from tests.support import matrix, oracle

pytestmark = helpers.needs_harness


BLOCKS = [
    RowBlock(*b)
    for b in ((32, 1, 2, 1, 0), (64, 1, 8, 4, 0), (512, 1, 512, 4, 0), (8, 16, 16, 1, 0), (16, 32, 32, 4, 0))
]


@pytest.mark.parametrize("block", BLOCKS, ids=repr)
def test_every_block(block: RowBlock):
    """Rows of two and a half turns of a block, a few more rows than it has; with and without a dense part."""
    if block.depth > 1:
        shape: tuple[int, ...] = (2, int(2.5 * block.depth), block.vector * (block.side + 1))
    else:
        shape = (block.side // block.group + 1, int(2.5 * block.group) * block.vector)
    rng = np.random.default_rng(1)
    x = helpers.numbers(*shape)
    target = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    weight = rng.uniform(0.5, 2, shape[1]).astype(np.float32)
    calls: list[dict[str, Any]] = [
        {"input": x, "target": target, "weight": weight},
        {"input": x, "target": target, "weight": weight, "label_smoothing": 0.1, "reduction": "none"},
        {"input": x, "target": np.abs(x) / shape[1], "weight": weight, "label_smoothing": 0.1, "reduction": "sum"},
    ]
    complaints = []
    with use_row_block(block), on_cpu(order="random", seed=3):
        for arguments in calls:
            expected = oracle.expect("cross_entropy", arguments)
            found = oracle.with_vjp("cross_entropy", arguments, expected.incoming, "cupy")
            complaints += expected.complaints(found)
    helpers.report(complaints)


def test_many_rows_are_summed_in_parts():
    """More rows than one block sums, and fewer than two blocks do."""
    x = helpers.numbers(5000, 3)
    arguments = {"input": x, "target": np.arange(5000) % 3}
    expected = oracle.expect("cross_entropy", arguments)
    with on_cpu("fast") as launched:
        found = oracle.with_vjp("cross_entropy", arguments, expected.incoming, "cupy")
    helpers.report(expected.complaints(found))
    assert launched.kernels == ["losses_of_rows", "sum_losses", "finish_loss", "loss_gradient_rows"]


def test_a_class_that_is_none_makes_its_row_nan_and_is_never_read():
    """Values are checked before a kernel runs, but the kernel is safe by itself."""
    x, target = helpers.numbers(4, 5), np.array([0, 7, -3, 4])
    captured = matrix.capture("cross_entropy", x, target, reduction="none")
    problem = captured.problem(True)
    with on_cpu():
        kernels.explain("cross_entropy", x, target, backend="cupy")
        implementation = captured.op.implementations["cupy"]
        loss, maximum, log_sum, _ = implementation.forward(problem, x, target, None)
        assert implementation.backward is not None
        kept = {"input": x, "target": target, "weight": None, "maximum": maximum, "log_sum": log_sum}
        gradient, *_ = implementation.backward(problem, np.ones(4, np.float32), **kept)
    assert np.isnan(loss).tolist() == [False, True, True, False]
    assert np.isnan(gradient).all(1).tolist() == [False, True, True, False]
    assert np.isnan(gradient).any(1).tolist() == [False, True, True, False]


def test_wrong_classes_are_refused_before_a_kernel_runs():
    with on_cpu() as launched, pytest.raises(IndexError, match=r"target must lie in \[0, 4\].*got 7 at 1"):
        kernels.cross_entropy(helpers.numbers(3, 5), np.array([0, 7, 1]), backend="cupy")
    assert launched.kernels == []
