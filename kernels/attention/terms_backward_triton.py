"""The Triton kernels of the gradients of attention's bias and of T5's table; names as in backward_triton.py."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.backward_triton import score_gradient, weights_of
from kernels.attention.forward_triton import load_rows, wide_product
from kernels.attention.scores_triton import kept_factors, key_range, keys_of_row, scores


@triton.jit
def product_of_rows(
    a, i, a_i, a_e, A, b, j, b_j, b_e, B, width,
    BLOCK: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """Rows i of a times rows j of b: (i's size, j's size)."""
    if WIDE:
        return wide_product(a, i, a_i, a_e, A, b, j, b_j, b_e, B, width, BLOCK, PRECISION, COMPUTED)
    else:
        e = tl.arange(0, BLOCK)
        left = load_rows(a, i, a_i, e, a_e, A, width, WHOLE)
        right = load_rows(b, j, b_j, e, b_e, B, width, WHOLE)
        return tl.dot(left, tl.trans(right), input_precision=PRECISION, out_dtype=COMPUTED)


@triton.jit
def tile_gradient(
    query, key, grad, value, mask, bias, term, seed, row_level, row_delta, number, i, first, L, S, E, EV,
    count, shift, g_i, g_e, q_i, q_e, k_j, k_e, v_j, v_e, mask_i, mask_j, bias_i, bias_j, term_i, term_row,
    SCALE: tl.constexpr, CAP: tl.constexpr, UNIT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, TERM: tl.constexpr, LIMIT: tl.constexpr,
    DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, KEPT: tl.constexpr, FOURS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr, WIDE: tl.constexpr, WHOLE_E: tl.constexpr,
    WHOLE_V: tl.constexpr, PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """(gradient of the scores before the cap, what is seen) of queries i and the BLOCK_N keys from `first`.

    Arrays begin at (b, h, 0, 0).
    """
    j = first + tl.arange(0, BLOCK_N)
    product = product_of_rows(
        query, i, q_i, q_e, L, key, j, k_j, k_e, count, E, BLOCK_E, WIDE, WHOLE_E, PRECISION, COMPUTED
    )  # fmt: skip
    y, seen = scores(
        product, i[:, None], j[None, :], L, S, count, shift, mask, mask_i, mask_j, bias, bias_i, bias_j, term, term_i,
        term_row, SCALE, CAP, UNIT, LEFT, RIGHT, True, HAS_MASK, HAS_BIAS, TERM, LIMIT, COMPUTED,
    )  # fmt: skip
    d_weights = product_of_rows(
        grad, i, g_i, g_e, L, value, j, v_j, v_e, count, EV, BLOCK_V, WIDE, WHOLE_V, PRECISION, COMPUTED
    )  # fmt: skip
    if DROPOUT:
        d_weights = d_weights * kept_factors(seed, number, i, first, BLOCK_N, L, S, THRESHOLD, KEPT, FOURS, COMPUTED)
    p = weights_of(y, seen, row_level, UNIT)
    return score_gradient(p, y, seen, d_weights, row_delta, CAP, UNIT), seen


@triton.jit
def bias_gradient(
    grad, query, key, value, mask, bias, lengths, term, seed, level, delta, grad_bias, H, GROUP, L, S, E, EV, B,
    of_b, of_h, of_i, of_j,
    g_b, g_h, g_i, g_e, q_b, q_h, q_i, q_e, k_b, k_h, k_j, k_e, v_b, v_h, v_j, v_e, mask_b, mask_h, mask_i, mask_j,
    bias_b, bias_h, bias_i, bias_j, term_b, term_h, term_i, term_row,
    SCALE: tl.constexpr, CAP: tl.constexpr, UNIT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    FROM_END: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    TERM: tl.constexpr, LIMIT: tl.constexpr, DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, KEPT: tl.constexpr,
    FOURS: tl.constexpr, SUM_B: tl.constexpr, SUM_H: tl.constexpr, SUM_I: tl.constexpr, SUM_J: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    WIDE: tl.constexpr, WHOLE_E: tl.constexpr, WHOLE_V: tl.constexpr, PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """grad_bias, in bias's own shape (of_b, of_h, of_i, of_j): summed where it broadcasts (SUM_B, ...), in turn.

    Programs: tiles of grad_bias; one goes over all tiles of scores that its tile is added to.
    """
    program = tl.program_id(0)
    blocks_j = tl.cdiv(of_j, BLOCK_N)
    blocks_i = tl.cdiv(of_i, BLOCK_M)
    tile_j = program % blocks_j
    tile_i = program // blocks_j % blocks_i
    own_h = program // blocks_j // blocks_i % of_h
    own_b = program // blocks_j // blocks_i // of_h
    times_j = tl.cdiv(S, BLOCK_N) if SUM_J else 1
    times_i = tl.cdiv(L, BLOCK_M) if SUM_I else 1
    times_h = H if SUM_H else 1
    times_b = B if SUM_B else 1
    sums = tl.zeros((BLOCK_M, BLOCK_N), COMPUTED)
    for step in range(0, times_b * times_h * times_i * times_j):
        at_j = tile_j + step % times_j
        at_i = tile_i + step // times_j % times_i
        h = (own_h + step // times_j // times_i % times_h).to(tl.int64)
        b = (own_b + step // times_j // times_i // times_h).to(tl.int64)
        count, shift = keys_of_row(lengths, b, L, S, HAS_LENGTHS, FROM_END)
        number = b * H + h
        i = at_i * BLOCK_M + tl.arange(0, BLOCK_M)
        row = number * L + i
        row_level = tl.load(level + row, mask=i < L, other=0.0)[:, None]
        row_delta = tl.load(delta + row, mask=i < L, other=0.0)[:, None]
        dx, _ = tile_gradient(
            query + b * q_b + h * q_h, key + b * k_b + h // GROUP * k_h, grad + b * g_b + h * g_h,
            value + b * v_b + h // GROUP * v_h, mask + b * mask_b + h * mask_h, bias + b * bias_b + h * bias_h,
            term + b * term_b + h * term_h, seed, row_level, row_delta, number, i, at_j * BLOCK_N, L, S, E, EV,
            count, shift, g_i, g_e, q_i, q_e, k_j, k_e, v_j, v_e, mask_i, mask_j, bias_i, bias_j, term_i, term_row,
            SCALE, CAP, UNIT, LEFT, RIGHT, HAS_MASK, HAS_BIAS, TERM, LIMIT, DROPOUT, THRESHOLD, KEPT, FOURS,
            BLOCK_N, BLOCK_E, BLOCK_V, WIDE, WHOLE_E, WHOLE_V, PRECISION, COMPUTED,
        )  # fmt: skip
        sums += dx
    if SUM_I:
        sums = tl.sum(sums, 0)[None, :]
    if SUM_J:
        sums = tl.sum(sums, 1)[:, None]
    i = tile_i * BLOCK_M + tl.arange(0, sums.shape[0])
    j = tile_j * BLOCK_N + tl.arange(0, sums.shape[1])
    place = ((own_b.to(tl.int64) * of_h + own_h) * of_i + i[:, None]) * of_j + j[None, :]
    tl.store(grad_bias + place, sums.to(grad_bias.dtype.element_ty), mask=(i[:, None] < of_i) & (j[None, :] < of_j))


@triton.jit
def bucket_gradient(
    grad, query, key, value, mask, bias, lengths, term, seed, level, delta, buckets, sums_of, H, GROUP, L, S, E, EV,
    g_b, g_h, g_i, g_e, q_b, q_h, q_i, q_e, k_b, k_h, k_j, k_e, v_b, v_h, v_j, v_e, mask_b, mask_h, mask_i, mask_j,
    bias_b, bias_h, bias_i, bias_j, term_b, term_h, term_i, term_row,
    SCALE: tl.constexpr, CAP: tl.constexpr, UNIT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    FROM_END: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    TERM: tl.constexpr, LIMIT: tl.constexpr, DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, KEPT: tl.constexpr,
    FOURS: tl.constexpr, BUCKETS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    WIDE: tl.constexpr, WHOLE_E: tl.constexpr, WHOLE_V: tl.constexpr, PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """sums_of (programs, BUCKETS): the gradient of T5's table from a block of queries. buckets (distances,), as `term`.

    Programs: blocks of queries of each head.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(L, BLOCK_M)
    first = program % blocks * BLOCK_M
    number = program // blocks
    b = (number // H).to(tl.int64)
    h = (number % H).to(tl.int64)
    i = first + tl.arange(0, BLOCK_M)
    bucket = tl.arange(0, BUCKETS)
    count, shift = keys_of_row(lengths, b, L, S, HAS_LENGTHS, FROM_END)
    row = number.to(tl.int64) * L + i
    row_level = tl.load(level + row, mask=i < L, other=0.0)[:, None]
    row_delta = tl.load(delta + row, mask=i < L, other=0.0)[:, None]
    low, high = key_range(first, tl.minimum(first + BLOCK_M, L), count, shift, LEFT, RIGHT)
    sums = tl.zeros((BUCKETS,), COMPUTED)
    for start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        dx, seen = tile_gradient(
            query + b * q_b + h * q_h, key + b * k_b + h // GROUP * k_h, grad + b * g_b + h * g_h,
            value + b * v_b + h // GROUP * v_h, mask + b * mask_b + h * mask_h, bias + b * bias_b + h * bias_h,
            term + b * term_b + h * term_h, seed, row_level, row_delta, number, i, start, L, S, E, EV,
            count, shift, g_i, g_e, q_i, q_e, k_j, k_e, v_j, v_e, mask_i, mask_j, bias_i, bias_j, term_i, term_row,
            SCALE, CAP, UNIT, LEFT, RIGHT, HAS_MASK, HAS_BIAS, TERM, LIMIT, DROPOUT, THRESHOLD, KEPT, FOURS,
            BLOCK_N, BLOCK_E, BLOCK_V, WIDE, WHOLE_E, WHOLE_V, PRECISION, COMPUTED,
        )  # fmt: skip
        place = j[None, :] - i[:, None] - shift + (tl.maximum(L, S) - 1)
        own = tl.load(buckets + place, mask=seen, other=-1)
        least = tl.min(tl.where(seen, own, BUCKETS))
        # Far from the diagonal the places of a tile share a bucket or two.
        for c in range(least, tl.max(own) + 1):
            sums += tl.where(bucket == c, tl.sum(tl.where(own == c, dx, 0.0)), 0.0)
    tl.store(sums_of + program.to(tl.int64) * BUCKETS + bucket, sums)
