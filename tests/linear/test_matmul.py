"""The matrix product core: every form of plan, sizes about block edges, accumulation, segments, rows apart."""

import itertools
import platform

import numpy as np
import pytest

from kernels.linear.numba_cpu import pack
from kernels.runtime.numba_cpu import zeros
from kernels.simd import matmul_plan
from kernels.simd.matmul import plan, run_product
from tests.support.calls import run_python
from tests.support.targets import TARGETS


def multiply(a, b, out=None, threads=1, is_packed=False, **settings):
    """C and its plan for matrices of any strides; C is filled with NaN unless it is given. is_packed: B in panels."""
    strides = [tuple(step // m.itemsize for step in m.strides) for m in (a, b)]
    if is_packed:
        strides[1] = None
    bias = settings.pop("bias", None)
    p = plan((*a.shape, b.shape[1]), *strides, b.shape[1], a.itemsize, threads, **settings)
    c = zeros((a.shape[0], b.shape[1]), a.dtype) + np.nan if out is None else out
    begin = pack(b.T)[0] if is_packed else b[0, :1]
    run_product(p, threads, a[0, :1], begin, c.reshape(-1), bias=bias)
    return c, p


def matrix(shape, dtype, turned, seed):
    """Small integers, whose sums are exact in any order; `turned`: its columns lie side by side."""
    numbers = np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)
    return np.ascontiguousarray(numbers.T).T if turned else numbers


SIZES = ((1, 2, 8, 9, 12, 13, 65, 250), (1, 3, 8, 63, 129, 1100), (1, 8, 9, 16, 17, 32, 33, 270, 600))


@pytest.mark.parametrize("turned", list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact(dtype, turned):
    for rows, taps, columns in itertools.product(*SIZES):
        a, b = matrix((rows, taps), dtype, turned[0], 0), matrix((taps, columns), dtype, turned[1], 1)
        for threads in (1, 3):
            found, p = multiply(a, b, threads=threads)
            np.testing.assert_array_equal(found, a @ b, err_msg=str(p))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_when_packed(dtype, turned):
    """As above, and rows for which several panels go together; the last panel a tile or a vector wide, or half full."""
    for rows, taps, columns in itertools.product((*SIZES[0][:4], 3, 4, 5, 64, 250), SIZES[1], (*SIZES[2], 72, 100)):
        a, b = matrix((rows, taps), dtype, turned, 0), matrix((taps, columns), dtype, rows % 2 == 0, 1)
        bias = matrix((columns,), dtype, False, 2)
        for threads in (1, 3):
            found, p = multiply(a, b, threads=threads, is_packed=True, bias=bias, bias_stride=1)
            np.testing.assert_array_equal(found, a @ b + bias, err_msg=str(p))
            assert p.is_packed and not p.is_dot and not p.is_streamed and not p.is_transposed


def test_every_packed_plan_is_taken():
    def kind(rows, taps, columns, a_strides):
        p = plan((rows, taps, columns), a_strides, None, columns, 4)
        return bool(p.is_few), bool(p.packs_a), p.segments > 1

    assert kind(1, 512, 400, (512, 1)) == (True, False, False)
    assert kind(matmul_plan.PANEL_ROWS, 512, 400, (512, 1)) == (True, False, False)
    assert kind(20, 512, 300, (512, 1)) == (False, False, False)
    assert kind(20, 512, 400, (512, 1)) == (False, True, False)
    assert kind(20, 9000, 15, (9000, 1)) == (False, False, True)
    found, p = multiply(np.ones((20, 9000), "f"), np.ones((9000, 15), "f"), is_packed=True)
    assert p.segments > 1 and (found == 9000).all()


def test_packed_and_plain_have_the_same_bits():
    """Where the same tiles run; few rows and dot products go other ways unless they are packed."""
    rng = np.random.default_rng(4)
    for rows, taps, columns in ((164, 576, 164), (140, 1100, 190), (300, 60, 13), (300, 60, 21), (170, 300, 1000)):
        a, b = rng.standard_normal((rows, taps)).astype("f"), rng.standard_normal((columns, taps)).astype("f").T
        np.testing.assert_array_equal(multiply(a, b)[0], multiply(a, b, is_packed=True)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(9, 300, 70), (21, 1100, 600), (64, 576, 64), (600, 2100, 19)])
def test_blocks_of_dot_products(dtype, sizes):
    """Tiles of three rows and of two, one run of taps and several, copied rows, C transposed; the bits of any parts."""
    rows, taps, columns = sizes
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((rows, taps)).astype(dtype), rng.standard_normal((columns, taps)).astype(dtype).T
    bias = rng.standard_normal(columns).astype(dtype)
    found = []
    for threads in (1, 2, 5):
        c, p = multiply(a, b, threads=threads, bias=bias, bias_stride=1, activation=1)
        assert p.is_dot and p.rows > matmul_plan.DOT_ROWS and p.column_parts <= threads
        found.append(c)
    exact = np.maximum(a.astype(np.longdouble) @ b.astype(np.longdouble) + bias, 0)
    assert np.abs(found[0] - exact).max() <= np.abs(np.maximum(a @ b + bias, 0) - exact).max() * 1.5
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])
    for row in (0, rows - 1):  # Nor do they depend on the rows beside.
        beside = multiply(a[row // 9 * 9 :][:9], b, bias=bias, bias_stride=1, activation=1)[0]
        if len(beside) == 9 and rows <= matmul_plan.DOT_BLOCK_ROWS:
            np.testing.assert_array_equal(beside[row % 9], found[0][row])


def test_every_plan_is_taken():
    def kind(sizes, a_strides, b_strides):
        p = plan(sizes, a_strides, b_strides, sizes[2], 4)
        if p.is_streamed:
            return "streamed"
        if p.is_dot and p.rows > matmul_plan.DOT_ROWS:
            return "dot blocks", bool(p.is_transposed), bool(p.packs_a)
        return bool(p.is_dot), bool(p.is_transposed), bool(p.packs_a), p.segments > 1

    assert kind((1, 512, 400), (512, 1), (1, 512)) == (True, False, False, False)
    assert kind((400, 512, 1), (512, 1), (1, 512)) == (True, True, False, False)
    assert kind((20, 512, 400), (512, 1), (1, 512)) == ("dot blocks", False, False)
    assert kind((20, 512, 600), (512, 1), (1, 512)) == ("dot blocks", False, True)
    assert kind((400, 512, 20), (512, 1), (1, 512)) == ("dot blocks", True, False)
    assert kind((64, 576, 64), (576, 1), (1, 576)) == ("dot blocks", False, False)
    assert kind((64, 64, 64), (64, 1), (1, 64)) == (False, False, False, False)
    assert kind((32, 512, 400), (512, 1), (1, 512)) == (False, True, False, False)
    assert kind((200, 512, 300), (512, 1), (1, 512)) == (False, False, False, False)
    assert kind((200, 512, 3000), (512, 1), (1, 512)) == (False, False, True, False)
    assert kind((200, 512, 100), (1, 200), (100, 1)) == (False, False, True, False)
    assert kind((10, 9000, 15), (1, 10), (15, 1)) == (False, False, False, True)
    assert kind((1, 512, 400), (512, 1), (400, 1)) == "streamed"  # few rows
    assert kind((8, 512, 400), (512, 1), (400, 1)) == "streamed"
    assert kind((300, 8, 400), (1, 300), (400, 1)) == "streamed"  # few taps
    assert kind((9, 512, 300), (512, 1), (300, 1)) == (False, False, False, False)


@pytest.mark.parametrize("sizes", [(3, 200, 70), (70, 200, 3), (20, 70, 90), (100, 70, 90), (20, 9000, 30)])
@pytest.mark.parametrize("turned", [False, True])
def test_accumulate(sizes, turned):
    rows, taps, columns = sizes
    a, b = matrix((rows, taps), "float32", False, 0), matrix((taps, columns), "float32", turned, 1)
    old = matrix((rows, columns), "float32", False, 2)
    found, _ = multiply(a, b, old.copy(), accumulates=True)
    np.testing.assert_array_equal(found, a @ b + old)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(30, 200, 70), (13, 1100, 100), (250, 2100, 64), (70, 5, 33), (40, 300, 16)])
def test_bias_and_relu(dtype, sizes):
    """Whole panels, which tiles write themselves, and what is left; one run of taps, several, and several blocks."""
    rows, taps, columns = sizes
    a, b = matrix((rows, taps), dtype, False, 0), matrix((taps, columns), dtype, True, 1)
    bias = np.arange(columns).astype(dtype)
    sums = a @ b
    assert (sums < 0).any() and (sums > 0).any()
    np.testing.assert_array_equal(multiply(a, b, bias=bias, bias_stride=1)[0], sums + bias)
    np.testing.assert_array_equal(multiply(a, b, activation=1)[0], np.maximum(sums, 0))
    for threads in (1, 3):
        found, _ = multiply(a, b, threads=threads, bias=bias, bias_stride=1, activation=1)
        np.testing.assert_array_equal(found, np.maximum(sums + bias, 0))
    found, _ = multiply(a, b, bias=bias[5:6], bias_stride=0, activation=1)
    np.testing.assert_array_equal(found, np.maximum(sums + 5, 0))


@pytest.mark.parametrize("turned", list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("sizes", [(20, 9001, 30), (5, 70000, 3), (40, 4500, 40)])
def test_segments(sizes, turned):
    rows, taps, columns = sizes
    a, b = matrix((rows, taps), "float32", turned[0], 0), matrix((taps, columns), "float32", turned[1], 1)
    bias = matrix((columns,), "float32", False, 2)
    found = [multiply(a, b, threads=t, bias=bias, bias_stride=1)[0] for t in (1, 2, 5)]
    for one in found:
        np.testing.assert_array_equal(one, a @ b + bias)


@pytest.mark.parametrize("rows", [1, 5])
def test_infinity_times_zero_stays_in_its_column(rows):
    """Streamed rows of B past the last one must not take part: their product with anything would be NaN."""
    a, b = np.ones((rows, 6), "f"), np.ones((6, 40), "f")
    b[5, 3] = np.inf
    found, p = multiply(a, b)
    assert p.is_streamed
    expected = np.full((rows, 40), 6.0)
    expected[:, 3] = np.inf
    np.testing.assert_array_equal(found, expected)


def test_no_taps_gives_the_bias():
    c = np.full((7, 9), np.nan, "f")
    p = plan((7, 0, 9), (0, 1), (1, 0), 9, 4, 1, bias_stride=0)
    run_product(p, 1, c.reshape(-1), c.reshape(-1), c.reshape(-1), bias=np.full(1, 2.5, "f"))
    np.testing.assert_array_equal(c, np.full((7, 9), 2.5))


def test_rows_of_c_apart():
    a, b = matrix((30, 20), "float32", False, 0), matrix((20, 40), "float32", False, 1)
    c = np.full((30, 50), -1, "f")
    run_product(plan((30, 20, 40), (20, 1), (40, 1), 50, 4), 1, a[0], b[0], c.reshape(-1))
    np.testing.assert_array_equal(c[:, :40], a @ b)
    assert (c[:, 40:] == -1).all()


def test_error_stays_below_numpy():
    rng = np.random.default_rng(0)
    for rows in (60, 3):
        a, b = rng.standard_normal((rows, 4000)).astype("f"), rng.standard_normal((4000, 70)).astype("f")
        exact = a.astype(np.float64) @ b.astype(np.float64)
        theirs = np.abs(a @ b - exact).max()
        for second in (b, np.ascontiguousarray(b.T).T):
            assert np.abs(multiply(a, second)[0] - exact).max() <= 1.5 * theirs
    assert matmul_plan.PASS_TAPS <= 256


SHORTER_VECTORS = """
import itertools
import numpy as np
from kernels.simd import VECTOR_BYTES, matmul_plan
from kernels.simd.matmul import plan, run_product
taken = 0
for dtype, rows, taps, columns in itertools.product(("f", "d"), (1, 5, 8, 9, 21, 64), (130, 1100), (3, 33, 70)):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, shape).astype(dtype) for shape in ((rows, taps), (columns, taps)))
    p = plan((rows, taps, columns), (taps, 1), (1, taps), columns, a.itemsize, 2)
    c = np.full((rows, columns), np.nan, dtype)
    run_product(p, 2, a[0, :1], b[0, :1], c.reshape(-1))
    np.testing.assert_array_equal(c, a @ b.T, err_msg=str(p))
    taken += p.is_dot and p.rows > matmul_plan.DOT_ROWS
print(VECTOR_BYTES, taken > 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 and SSE are of x86-64 processors")
@pytest.mark.parametrize("vector_bytes", TARGETS)
def test_shorter_vectors(vector_bytes):
    """Dot products with tiles of four columns, for which there are the registers."""
    finished = run_python(SHORTER_VECTORS, **TARGETS[vector_bytes])
    assert finished.stdout == f"{vector_bytes} True\n", finished.stderr[-2000:]
