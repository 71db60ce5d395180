"""layer_norm and rms_norm in CUDA C++, executed on the CPU: every block, which kernels run, large means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.runtime.row_blocks import RowBlock, use_row_block
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu
from tests.support import oracle

pytestmark = helpers.needs_harness


def calls(rows: int, n: int) -> list[tuple[str, dict[str, Any]]]:
    """Both ops on rows, with all that they take."""
    weight = {"weight": helpers.numbers(n, seed=2)}
    shape = {"x": helpers.numbers(rows, n) + 3, "normalized_shape": (n,)}
    return [("layer_norm", shape | weight | {"bias": helpers.numbers(n, seed=3)}), ("rms_norm", shape | weight)]


BLOCKS = [
    RowBlock(threads, 1, group, vector, steps)
    for threads, group in ((32, 2), (128, 32), (512, 512))
    for vector, steps in ((1, 1), (1, 8), (4, 2), (1, 0), (4, 0))
]


@pytest.mark.parametrize("block", BLOCKS, ids=repr)
def test_every_block(block: RowBlock):
    """Rows as long as a block can keep, or two and a half turns of it; a few more rows than blocks have."""
    vectors = max(int((block.steps or 2.5) * block.group) - 1, 1)
    complaints = []
    with use_row_block(block), on_cpu(order="random", seed=3):
        for op, arguments in calls(block.side // block.group + 3, vectors * block.vector):
            expected = oracle.expect(op, arguments)
            found = oracle.with_vjp(op, arguments, expected.incoming, "cupy")
            complaints += [f"{op}: {c}" for c in expected.complaints(found)]
    helpers.report(complaints)


def test_the_kernels_that_run_are_these():
    """Rows that a block keeps, and longer ones."""
    for n, expected in (
        (40, ["normalise_rows", "gradients_of_parts", "sum_parts", "sum_parts"]),
        (16384, ["normalise_rows", "gradient_of_rows", "sums_of_columns", "sum_parts", "sum_parts"]),
    ):
        (op, arguments), _ = calls(70, n) if n == 40 else calls(3, n)
        wanted = oracle.expect(op, arguments)
        with on_cpu("fast") as launched:
            found = oracle.with_vjp(op, arguments, wanted.incoming, "cupy")
        helpers.report(wanted.complaints(found))
        assert launched.kernels == expected


def test_a_large_mean_costs_no_digits():
    x = helpers.numbers(4, 200) + np.float32(1e4)
    expected = oracle.expect("layer_norm", {"x": x, "normalized_shape": (200,)})
    with on_cpu():
        found = oracle.with_vjp("layer_norm", expected.arguments, expected.incoming, "cupy")
    helpers.report(expected.complaints(found))
    with use_row_block(RowBlock(32, 1, 32, 4, 0)), on_cpu():
        found = oracle.with_vjp("layer_norm", expected.arguments, expected.incoming, "cupy")
    helpers.report(expected.complaints(found))
