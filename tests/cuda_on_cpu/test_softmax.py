"""softmax and log_softmax in CUDA C++, executed on the CPU: every block, offsets, numbers that are none."""

from __future__ import annotations

import numpy as np
import pytest

import kernels
from kernels.runtime.cupy_gpu import DTYPES
from kernels.runtime.row_blocks import RowBlock, use_row_block
from tests.cuda_on_cpu import helpers
from tests.cuda_on_cpu.helpers import on_cpu
from tests.support import matrix, oracle

OPS = ("softmax", "log_softmax")
pytestmark = helpers.needs_harness


# ----- every block -------------------------------------------------------------------------------------------------


def blocks() -> list[RowBlock]:
    """Blocks of rows and of columns, kept and read again, with and without vectors."""
    rows = [RowBlock(threads, 1, group, vector, steps)
            for threads, group in ((32, 2), (64, 8), (128, 32), (128, 128), (512, 512))
            for vector, steps in ((1, 1), (1, 8), (4, 2), (1, 0), (4, 0))]  # fmt: skip
    columns = [RowBlock(side, depth, depth, vector, steps)
               for side, depth in ((1, 32), (8, 16), (32, 1), (16, 32))
               for vector, steps in ((1, 1), (1, 8), (4, 2), (1, 0), (4, 0))]  # fmt: skip
    return rows + columns


@pytest.mark.parametrize("block", blocks(), ids=repr)
def test_every_block(block: RowBlock):
    """Rows as long as a block can keep, or two and a half turns of it; a few more rows than blocks have."""
    turns = block.steps or 2.5
    if block.group == block.depth:
        shape: tuple[int, ...] = (2, max(int(turns * block.depth) - 1, 1), block.vector * (block.side + 1))
    else:
        vectors = max(int(turns * block.group) - 1, 1)
        shape = (block.side // block.group + 1, vectors * block.vector)
    complaints = []
    with use_row_block(block), on_cpu(order="random", seed=3):
        for op in OPS:
            arguments = {"x": helpers.numbers(*shape), "dim": 1}
            expected = oracle.expect(op, arguments)
            found = oracle.with_vjp(op, arguments, expected.incoming, "cupy")
            complaints += [f"{op} {shape}: {c}" for c in expected.complaints(found)]
    helpers.report(complaints)


# ----- what else may go wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
def test_offsets_beyond_32_bits(op: str):
    """Rows 2**30 elements apart; the memory between them is never touched."""
    stride, n = 2**30 + 64, 33
    base = np.empty(2 * stride + n, np.float16)
    x = np.lib.stride_tricks.as_strided(base, (3, n), (stride * 2, 2))
    x[...] = helpers.numbers(3, n)
    with on_cpu():
        packed = kernels.vjp(op, np.ascontiguousarray(x), backend="cupy")
        apart = kernels.vjp(op, x, backend="cupy")
        gradients = [pullback(helpers.numbers(3, n, seed=1))[0] for _, pullback in (packed, apart)]
    np.testing.assert_array_equal(packed[0], apart[0])
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize("op", OPS)
def test_nan_and_infinities(op: str):
    x = helpers.numbers(6, 21)
    x[0, 3], x[1, 5], x[2, 7], x[3], x[4, :20] = np.nan, np.inf, -np.inf, -np.inf, -np.inf
    with on_cpu():
        found = getattr(kernels, op)(x, backend="cupy")
        across = getattr(kernels, op)(np.ascontiguousarray(x.T), 0, backend="cupy")
    expected = getattr(kernels, op)(x, backend="reference")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(across.T, expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(found).all(1).tolist() == [True, True, False, True, False, False]


def test_rows_too_long_for_a_block_are_refused():
    message = r"^use_row_block: block must hold a whole row of 9 elements, got RowBlock\(side=32, depth=1, group=8,.*"
    with on_cpu(), use_row_block(RowBlock(32, 1, 8, 1, 1)), pytest.raises(ValueError, match=message):
        kernels.softmax(np.zeros((2, 9), np.float32), backend="cupy")


def test_explain_names_the_kernel(capsys: pytest.CaptureFixture[str]):
    with on_cpu():
        assert kernels.explain("softmax", np.zeros((3, 7))).chosen == "cupy"
    assert "3 rows of 7, threads along the rows <- chosen" in capsys.readouterr().out


def test_dtypes_are_those_declared():
    with on_cpu():
        kernels.explain("softmax", np.zeros(3))
    for op in OPS:
        assert matrix.OPS[op].implementations["cupy"].dtypes == DTYPES
