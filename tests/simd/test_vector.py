"""Every operation on vectors against NumPy, in both element types, with tails, NaN and infinities."""

import ctypes
import mmap
import sys

import numpy as np
import pytest
from numba import njit

from kernels.simd import (
    VECTOR_BYTES,
    absolute,
    advance,
    aligned,
    all_lanes,
    any_lane,
    as_integers,
    block_evens,
    block_odds,
    blocks_in_order,
    broadcast,
    copysign,
    evens,
    floor,
    fma,
    full,
    interleave_high,
    interleave_low,
    iota,
    is_nan,
    keep_alive,
    lane_mask,
    lanes_of,
    load,
    load_first,
    load_masked,
    maximum,
    maximum_nan,
    minimum,
    minimum_nan,
    odds,
    peek,
    pointer,
    pointer_at,
    poke,
    prefetch,
    reduce_add,
    reduce_max,
    reduce_min,
    round_even,
    select,
    splat_integer,
    splat_like,
    sqrt,
    store,
    store_first,
    store_int64_first,
    store_int64_masked,
    store_masked,
    zeros_like,
)
from kernels.simd.target import TARGET

DTYPES = [np.float32, np.float64]


def lane_count(dtype):
    return VECTOR_BYTES // np.dtype(dtype).itemsize


@njit(nogil=True, error_model="numpy")
def run_arithmetic(x, y, z, out):
    p, q, o = pointer(x), pointer(y), pointer(out)
    lanes = lanes_of(p)
    a, b, c = load(p, 0), load(q, 0), load(pointer(z), 0)
    total = a
    total += b
    total -= 0.5
    total *= c
    total /= 3
    results = (
        a + b, a - b, a * b, a / b, -a, a + 0.5, 0.1 - a, 2 * a, 1 / b, total,
        fma(a, b, c), fma(a, 0.5, c), maximum(a, b), minimum(a, b), maximum(a, 0.0), maximum_nan(a, b),
        minimum_nan(a, b), absolute(a), copysign(b, a), sqrt(absolute(b)), floor(a), round_even(a),
        evens(a, b), odds(a, b), interleave_low(a, b), interleave_high(a, b),
        blocks_in_order(block_evens(a, b)), blocks_in_order(block_odds(a, b)),
        interleave_low(evens(a, b), odds(a, b)), interleave_high(evens(a, b), odds(a, b)),
        broadcast(q, 1), splat_like(a, 0.1), full(p, 3), zeros_like(x),
    )  # fmt: skip
    for i in range(len(results)):
        store(o, i * lanes, results[i])
    return len(results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arithmetic(dtype):
    lanes = lane_count(dtype)
    rng = np.random.default_rng(0)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 0.5, 1.5, -2.5], dtype)
    for trial in range(40):
        a, b, c = rng.normal(size=(3, lanes)).astype(dtype) * 3
        if trial % 2:
            a[rng.integers(lanes)], b[rng.integers(lanes)] = rng.choice(special), rng.choice(special)
        with np.errstate(all="ignore"):
            exact_type = np.longdouble if dtype == np.float64 else np.float64
            products = exact_type(a) * exact_type(b) + exact_type(c)
            both = np.concatenate([a, b])
            half = lanes // 2
            expected = [
                a + b, a - b, a * b, a / b, -a, a + dtype(0.5), dtype(0.1) - a, 2 * a, 1 / b,
                (a + b - dtype(0.5)) * c / dtype(3),
                products.astype(dtype), (exact_type(a) * exact_type(0.5) + c).astype(dtype),
                np.where(a > b, a, b), np.where(a < b, a, b), np.where(a > 0, a, dtype(0)),
                np.maximum(a, b), np.minimum(a, b), abs(a), np.copysign(b, a), np.sqrt(abs(b)),
                np.floor(a), np.rint(a), both[::2], both[1::2],
                np.stack([a[:half], b[:half]], 1).ravel(), np.stack([a[half:], b[half:]], 1).ravel(),
                both[::2], both[1::2], a, b, np.full(lanes, b[1]), np.full(lanes, dtype(0.1)), np.full(lanes, dtype(3)),
                np.zeros(lanes, dtype),
            ]  # fmt: skip
        out = np.full((40, lanes), np.nan, dtype)
        assert run_arithmetic(a, b, c, out) == len(expected)
        for position, wanted in enumerate(expected):
            message = f"result {position} of trial {trial}"
            if position in (10, 11) and not TARGET.has_fma:
                np.testing.assert_allclose(out[position], wanted, rtol=1e-5, atol=1e-5, err_msg=message)
            elif position in (10, 11):
                np.testing.assert_array_max_ulp(out[position], wanted, 1)
            else:
                np.testing.assert_array_equal(out[position], wanted, err_msg=message)


@njit(nogil=True, error_model="numpy")
def run_masks(x, y, out):
    p, q, o = pointer(x), pointer(y), pointer(out)
    lanes = lanes_of(p)
    a, b = load(p, 0), load(q, 0)
    less, equal = a < b, a == b
    masks = (
        less, a <= b, a > b, a >= b, equal, a != b, less & equal, less | equal, ~less, is_nan(a), 0 < a, a < 0.5,
    )  # fmt: skip
    for i in range(len(masks)):
        store(o, i * lanes, select(masks[i], splat_like(a, 1.0), 0.0))
    return any_lane(less), all_lanes(less), any_lane(equal), all_lanes(equal)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(dtype):
    lanes = lane_count(dtype)
    rng = np.random.default_rng(1)
    pool = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 2.0], dtype)
    for trial in range(40):
        a, b = rng.choice(pool, (2, lanes))
        if trial < 2:
            # Every lane: less in the first trial, equal in the second.
            a, b = np.full(lanes, trial, dtype), np.ones(lanes, dtype)
        out = np.full((12, lanes), np.nan, dtype)
        found = run_masks(a, b, out)
        less, equal = a < b, a == b
        expected = [
            less, a <= b, a > b, a >= b, equal, a != b, less & equal, less | equal, ~less, np.isnan(a), a > 0, a < 0.5,
        ]  # fmt: skip
        np.testing.assert_array_equal(out, np.array(expected, dtype))
        assert found == (less.any(), less.all(), equal.any(), equal.all())


@njit(nogil=True, error_model="numpy")
def run_reductions(x):
    a = load(pointer(x), 0)
    return reduce_add(a), reduce_max(a), reduce_min(a)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reductions_have_a_fixed_order(dtype):
    rng = np.random.default_rng(2)
    for _ in range(20):
        x = rng.normal(size=lane_count(dtype)).astype(dtype)
        halves = x
        while halves.size > 1:
            halves = halves[: halves.size // 2] + halves[halves.size // 2 :]
        assert run_reductions(x) == (halves[0], x.max(), x.min())


@njit(nogil=True, error_model="numpy")
def run_partial(x, i, n, out_load, out_fill, out_store, out_masked_load, out_masked_store, first, last):
    p = pointer(x)
    store(pointer(out_load), 0, load_first(p, i, n))
    store(pointer(out_fill), 0, load_first(p, i, n, -7))
    whole = iota(p, 1, 1)
    numbers = load(pointer(out_load), 0) + 1.0
    store_first(pointer(out_store), i, numbers, n)
    mask = lane_mask(p, first, last)
    store(pointer(out_masked_load), 0, load_masked(p, i, mask, 5.0))
    store_masked(pointer(out_masked_store), i, numbers, mask)
    return reduce_add(select(whole > 0, numbers, 0.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_partial_loads_and_stores(dtype):
    lanes = lane_count(dtype)
    bounds = [-(2**40), -3, 0, 1, lanes // 2, lanes - 1, lanes, lanes + 1, 2**40]
    for n in [*range(lanes + 2), -1, -(2**33), 2**33, 2**32 + 1]:
        kept = min(max(n, 0), lanes)
        x = np.arange(3, 6 + lanes).astype(dtype)
        for first, last in [(f, b) for f in bounds for b in bounds] if n == lanes else [(0, kept)]:
            loads = [np.full(lanes, np.nan, dtype) for _ in range(3)]
            stores = [np.full(3 + lanes + 2, np.nan, dtype) for _ in range(2)]
            run_partial(x, 3, n, loads[0], loads[1], stores[0], loads[2], stores[1], first, last)
            lane = np.arange(lanes)
            np.testing.assert_array_equal(loads[0], np.where(lane < n, lane + 6, 0))
            np.testing.assert_array_equal(loads[1], np.where(lane < n, lane + 6, -7))
            inside = (first <= lane) & (lane < last)
            np.testing.assert_array_equal(loads[2], np.where(inside, lane + 6, 5))
            for result, kept_lanes in zip(stores, (lane < n, inside), strict=True):
                expected = np.full(3 + lanes + 2, np.nan)
                expected[3 : 3 + lanes] = np.where(kept_lanes, loads[0] + 1, np.nan)
                np.testing.assert_array_equal(result, expected)


@njit(nogil=True, error_model="numpy")
def run_at_edges(x, front, back):
    """Doubles the `back` last elements before the end of x, then the `front` first ones, in ways that read too far."""
    p, n, lanes = pointer(x), x.size, lanes_of(x)
    at = n - back
    store_first(p, at, load_first(p, at, back) * 2.0, back)
    at = front - lanes
    mask = lane_mask(p, lanes - front, lanes)
    store_masked(p, at, load_masked(p, at, mask, 0.0) * 2.0, mask)


@pytest.mark.skipif(sys.platform != "linux", reason="protects memory with Linux's mprotect")
@pytest.mark.parametrize("dtype", DTYPES)
def test_lanes_left_out_touch_no_memory(dtype):
    page = mmap.PAGESIZE
    # Three pages, of which only the middle one may be touched.
    memory = mmap.mmap(-1, 3 * page)
    block = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    address = block.ctypes.data
    x = block[page : 2 * page].view(dtype)
    assert protect(address, page, 0) == 0
    assert protect(address + 2 * page, page, 0) == 0
    try:
        for count in range(lane_count(dtype) + 1):
            x[:] = 1
            run_at_edges(x, count, lane_count(dtype) - count)
            expected = np.ones(x.size)
            expected[:count] = 2
            expected[x.size - lane_count(dtype) + count :] = 2
            np.testing.assert_array_equal(x, expected)
    finally:
        everything = mmap.PROT_READ | mmap.PROT_WRITE
        protect(address, page, everything)
        protect(address + 2 * page, page, everything)


@njit(nogil=True, error_model="numpy")
def run_integers(x, out, n):
    p, o = pointer(x), pointer(out)
    lanes = lanes_of(p)
    count = iota(p, 5, 3)
    store_int64_first(o, 0, count, n)
    store_int64_masked(o, lanes, -count + 1, lane_mask(p, 1, 3))
    values = load(p, 0)
    store_int64_first(o, 2 * lanes, select(values > 0.0, count * 2 - 1, splat_integer(count, -1)), lanes)
    store_int64_first(o, 3 * lanes, maximum(count, 9), lanes)
    store_int64_first(o, 4 * lanes, select(count >= 8, minimum(count, 11), 0), lanes)
    return reduce_add(count), lanes_of(count), lanes_of(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_integers(dtype):
    lanes = lane_count(dtype)
    x = np.random.default_rng(3).normal(size=lanes).astype(dtype)
    lane = np.arange(lanes)
    count = 5 + 3 * lane
    for n in range(-1, lanes + 2):
        out = np.full((5, lanes), -99)
        assert run_integers(x, out, n) == (count.sum(), lanes, lanes)
        np.testing.assert_array_equal(out[0], np.where(lane < n, count, -99))
        np.testing.assert_array_equal(out[1], np.where((lane >= 1) & (lane < 3), 1 - count, -99))
        np.testing.assert_array_equal(out[2], np.where(x > 0, 2 * count - 1, -1))
        np.testing.assert_array_equal(out[3], np.maximum(count, 9))
        np.testing.assert_array_equal(out[4], np.where(count >= 8, np.minimum(count, 11), 0))


@njit(nogil=True, error_model="numpy")
def run_pointers(block, indices):
    p = pointer(block, 4)
    q = advance(p, -2)
    poke(q, 1, 7)
    prefetch(q, 10**9)
    scratch = np.empty(40, block.dtype)
    s = pointer(scratch)
    poke(s, 3, peek(p, 2))
    total = peek(s, 3) + peek(pointer(indices), 2)
    keep_alive(scratch)
    return total, peek(q, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("integer", [np.int32, np.int64])
def test_pointers(dtype, integer):
    block = np.arange(24).astype(dtype).reshape(2, 3, 4)
    assert run_pointers(block, np.array([1, 2, 40], integer)) == (46, 2)
    assert block.ravel()[3] == 7


@njit(nogil=True)
def _through_addresses(address, like):
    p = aligned(pointer_at(address + 1, like))
    poke(p, 1, 5.0)
    poke(as_integers(advance(p, 8)), 0, 7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_addresses(dtype):
    item, vector = np.dtype(dtype).itemsize, VECTOR_BYTES // np.dtype(dtype).itemsize
    x = np.zeros(4 * vector + 16, dtype)
    first = -x.ctypes.data % VECTOR_BYTES // item
    _through_addresses(x.ctypes.data + first * item, x[:1])
    expected = np.zeros_like(x)
    expected[first + vector + 1] = 5
    expected[first + vector + 8 :][: 8 // item] = np.array([7]).view(dtype)
    np.testing.assert_array_equal(x, expected)


@njit(nogil=True, error_model="numpy")
def helper(pair, scale):
    return pair[0] * scale, pair[1] + scale


@njit(nogil=True, error_model="numpy")
def run_through_calls(x, out):
    p = pointer(x)
    pair = (load(p, 0), load(p, lanes_of(p)))
    for _ in range(3):
        pair = helper(pair, 2.0)
    store(pointer(out), 0, pair[0] - pair[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_pass_through_functions_and_tuples(dtype):
    lanes = lane_count(dtype)
    x = np.arange(2 * lanes).astype(dtype)
    out = np.zeros(lanes, dtype)
    run_through_calls(x, out)
    np.testing.assert_array_equal(out, x[:lanes] * 8 - (x[lanes:] + 6))
