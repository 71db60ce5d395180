"""The Triton kernels of attention's forward pass (Dao, FlashAttention-2, 2023); names as in scores_triton.py.

Arrays have their strides in the order (batch, head, place, width); the innermost one of queries, keys and values too.
H, GROUP: heads of queries, and how many of them share a head of keys. BLOCK_E, BLOCK_V: powers of two that hold the
widths E and EV; where these are too wide (WIDE) a program has one of PARTS parts of the columns of its result, and its
scores are summed up over blocks of columns, anew in every program.

A weight of a hidden key is 0, and a product on tensor cores passes 0 times NaN on as NaN. So kernels whose tiles may
hide something note where a block of sums is no number (`odd`, a number for each FLAGGED queries or keys), and are
launched once more with SELECTS: on those blocks alone, with products in which what is hidden counts nothing at all.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.scores_triton import (
    kept_factors,
    key_range,
    keys_of_row,
    power,
    scores,
    whole_tiles,
)


@triton.jit
def load_rows(pointer, i, step, e, step_e, places, width, WHOLE: tl.constexpr, INSIDE: tl.constexpr = False):
    """Rows i (ROWS,) of `width` columns, 0 where there are none: (ROWS, e's size).

    WHOLE: e is just as wide. INSIDE: none of the rows lies behind the last place.
    """
    where = pointer + i[:, None].to(tl.int64) * step + e[None, :] * step_e
    if WHOLE and INSIDE:
        return tl.load(where)
    elif WHOLE:
        return tl.load(where, mask=i[:, None] < places, other=0.0)
    else:
        return tl.load(where, mask=(i[:, None] < places) & (e[None, :] < width), other=0.0)


@triton.jit
def wide_product(
    a, i, a_i, a_e, A, b, j, b_j, b_e, B, width,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """Rows i of a, of which there are A, times rows j of b, of which there are B: (i's size, j's size)."""
    total = tl.zeros((i.shape[0], j.shape[0]), COMPUTED)
    for first in range(0, width, BLOCK):
        e = first + tl.arange(0, BLOCK)
        left = load_rows(a, i, a_i, e, a_e, A, width, False)
        right = load_rows(b, j, b_j, e, b_e, B, width, False)
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION, out_dtype=COMPUTED)
    return total


@triton.jit
def not_finite(sums):
    """1 where some of a tile's sums is NaN or infinite, else 0."""
    return tl.max(tl.where(tl.abs(sums) < float("inf"), 0, 1))


@triton.jit
def add_product(left, right, sums, seen, SELECTS: tl.constexpr, PRECISION: tl.constexpr, COMPUTED: tl.constexpr):
    """sums + left @ right. left (R, N) is 0 where not seen; SELECTS: such a term counts nothing, be right what it may.

    Terms with NaN and infinities are then counted by products of their own, of ones and zeros.
    """
    if not SELECTS:
        return tl.dot(left.to(right.dtype), right, sums, input_precision=PRECISION, out_dtype=COMPUTED)
    else:
        wide = right.to(COMPUTED)
        finite = tl.abs(wide) < float("inf")
        infinite = tl.where(wide == float("inf"), 1.0, tl.where(wide == -float("inf"), -1.0, 0.0)).to(tl.float16)
        unknown = tl.where(wide != wide, 1.0, 0.0).to(tl.float16)
        clean = tl.where(finite, wide, 0.0).to(right.dtype)
        sums = tl.dot(left.to(right.dtype), clean, sums, input_precision=PRECISION, out_dtype=COMPUTED)
        sign = tl.where(left > 0, 1.0, tl.where(left < 0, -1.0, 0.0)).to(tl.float16)
        # The same again, behind a maximum, which the compiler moves nothing across. Else it would bring `seen`, as
        # bits, to where tensor cores read, for which it has no way and fails (Triton 3.9: as tf32 with a mask, in half
        # precision with a mask and a bias of one number a query).
        visible = tl.where(seen, 1.0, 0.0)
        visible = tl.max(tl.join(visible, visible), 2).to(tl.float16)
        zero = tl.where(left == 0, visible, 0.0).to(tl.float16)
        size = tl.abs(infinite)
        difference = tl.dot(sign, infinite)
        count = tl.dot(tl.abs(sign), size)
        nothing = tl.dot(visible, unknown) + tl.dot(zero, size)
        sums += tl.where(nothing > 0, float("nan"), 0.0).to(COMPUTED)
        sums += tl.where(count + difference > 0, float("inf"), 0.0).to(COMPUTED)
        return sums - tl.where(count - difference > 0, float("inf"), 0.0).to(COMPUTED)


@triton.jit
def over_keys(
    low, high, largest, total, sums, q, query, key, value, mask, bias, term, seed, number, i, e, w, H, GROUP, L, S,
    E, EV, count, shift, q_i, q_e, k_j, k_e, v_j, v_e, mask_i, mask_j, bias_i, bias_j, term_i, term_row,
    SCALE: tl.constexpr, CAP: tl.constexpr, UNIT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    EDGE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, TERM: tl.constexpr, LIMIT: tl.constexpr,
    DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, KEPT: tl.constexpr, FOURS: tl.constexpr, SELECTS: tl.constexpr,
    DESCRIBED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    WIDE: tl.constexpr, WHOLE_E: tl.constexpr, WHOLE_V: tl.constexpr, PRECISION: tl.constexpr,
    COMPUTED: tl.constexpr,
):  # fmt: skip
    """(largest score, sum of the weights, weighted sum of values) of each query, with the keys from low to high."""
    lane = tl.arange(0, BLOCK_N)
    for start in range(low, high, BLOCK_N):
        j = start + lane
        if WIDE:
            product = wide_product(
                query, i, q_i, q_e, L, key, j, k_j, k_e, count, E, BLOCK_E, PRECISION, COMPUTED
            )  # fmt: skip
        else:
            if DESCRIBED:
                k = key.load([number // H, number % H // GROUP, start, 0]).reshape(BLOCK_N, BLOCK_E)
            else:
                k = load_rows(key, j, k_j, e, k_e, count, E, WHOLE_E, not EDGE)
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=COMPUTED)
        y, seen = scores(
            product, i[:, None], j[None, :], L, S, count, shift, mask, mask_i, mask_j, bias, bias_i, bias_j, term,
            term_i, term_row, SCALE, CAP, UNIT, LEFT, RIGHT, EDGE, HAS_MASK, HAS_BIAS, TERM, LIMIT, COMPUTED,
        )  # fmt: skip
        y = tl.where(seen, y, -float("inf"))
        found = tl.maximum(largest, tl.max(y, 1))
        # With nothing above -inf so far there is no difference to it.
        level = tl.where(found == -float("inf"), 0.0, found)
        p = power(y - level[:, None], UNIT)
        rescale = power(largest - level, UNIT)
        total = total * rescale + tl.sum(p, 1)
        if DROPOUT:
            p = p * kept_factors(seed, number, i, start, BLOCK_N, L, S, THRESHOLD, KEPT, FOURS, COMPUTED)
        if DESCRIBED:
            v = value.load([number // H, number % H // GROUP, start, 0]).reshape(BLOCK_N, BLOCK_V)
        else:
            v = load_rows(value, j, v_j, w, v_e, count, EV, WHOLE_V, not EDGE)
        sums = add_product(p, v, sums * rescale[:, None], seen, SELECTS, PRECISION, COMPUTED)
        largest = found
    return largest, total, sums


@triton.jit
def attention_forward(
    query, key, value, mask, bias, lengths, term, seed, out, lse, odd, H, GROUP, L, S, E, EV, chunk,
    q_b, q_h, q_i, q_e, k_b, k_h, k_j, k_e, v_b, v_h, v_j, v_e, mask_b, mask_h, mask_i, mask_j,
    bias_b, bias_h, bias_i, bias_j, term_b, term_h, term_i, term_row, splits,
    SCALE: tl.constexpr, CAP: tl.constexpr, UNIT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    FROM_END: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    TERM: tl.constexpr, LIMIT: tl.constexpr, DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, KEPT: tl.constexpr,
    FOURS: tl.constexpr, APART: tl.constexpr, KEEPS: tl.constexpr, FLAGGED: tl.constexpr, SELECTS: tl.constexpr,
    DESCRIBED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    WIDE: tl.constexpr, PARTS: tl.constexpr, WHOLE_E: tl.constexpr, WHOLE_V: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """out (splits, B, H, L, EV), lse (splits, B, H, L): each split of the keys by itself, `chunk` keys of it.

    DESCRIBED: key and value are tensor descriptors, whose tiles the GPU's own unit copies to shared memory.
    APART: tiles that every query sees whole have a loop of their own, whose scores need no comparisons.

    Programs: blocks of queries, the last ones first, of each split of each head.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(L, BLOCK_M)
    first = (blocks - 1 - program % blocks) * BLOCK_M
    part = program // blocks % PARTS
    split = program // blocks // PARTS % splits
    number = program // blocks // PARTS // splits
    heads = tl.num_programs(0) // blocks // PARTS // splits
    if FLAGGED > 0:
        odd += program // blocks * tl.cdiv(L, FLAGGED) + first // FLAGGED
    if SELECTS:
        if tl.load(odd) == 0:
            return
    b = (number // H).to(tl.int64)
    h = (number % H).to(tl.int64)
    i = first + tl.arange(0, BLOCK_M)
    e = tl.arange(0, BLOCK_E)
    w = part * BLOCK_V + tl.arange(0, BLOCK_V)
    count, shift = keys_of_row(lengths, b, L, S, HAS_LENGTHS, FROM_END)
    query += b * q_b + h * q_h
    q = query
    if not WIDE:
        q = load_rows(query, i, q_i, e, q_e, L, E, WHOLE_E)
    if not DESCRIBED:
        key += b * k_b + h // GROUP * k_h
        value += b * v_b + h // GROUP * v_h
    if HAS_MASK:
        mask += b * mask_b + h * mask_h
    if HAS_BIAS:
        bias += b * bias_b + h * bias_h
    if TERM > 0:
        term += b * term_b + h * term_h
    low, high = key_range(first, tl.minimum(first + BLOCK_M, L), count, shift, LEFT, RIGHT)
    low = tl.maximum(low, split * chunk) // BLOCK_N * BLOCK_N
    high = tl.minimum(high, (split + 1) * chunk)
    largest = tl.full((BLOCK_M,), -float("inf"), COMPUTED)
    total = tl.zeros((BLOCK_M,), COMPUTED)
    sums = tl.zeros((BLOCK_M, BLOCK_V), COMPUTED)
    whole_low = high
    whole_high = high
    if APART:
        whole_low, whole_high = whole_tiles(
            low, high, first, tl.minimum(first + BLOCK_M, L), count, shift, LEFT, RIGHT, BLOCK_N
        )
    begin = low
    for zone in tl.static_range(3):  # an edge, the tiles that are seen whole, an edge; one edge for all if not APART
        end = whole_low if zone == 0 else whole_high if zone == 1 else high
        if (APART and zone > 0) or (zone == 0 and (LEFT >= 0 or not APART)):
            largest, total, sums = over_keys(
                begin, end, largest, total, sums, q, query, key, value, mask, bias, term, seed, number, i, e, w,
                H, GROUP, L, S, E, EV, count, shift, q_i, q_e, k_j, k_e, v_j, v_e, mask_i, mask_j, bias_i, bias_j,
                term_i, term_row, SCALE, CAP, UNIT, LEFT, RIGHT, zone != 1, HAS_MASK, HAS_BIAS, TERM, LIMIT, DROPOUT,
                THRESHOLD, KEPT, FOURS, SELECTS, DESCRIBED, BLOCK_N, BLOCK_E, BLOCK_V, WIDE, WHOLE_E, WHOLE_V,
                PRECISION, COMPUTED,
            )  # fmt: skip
        begin = end
    if FLAGGED > 0 and not SELECTS:
        tl.store(odd, not_finite(sums))
    # A query that sees nothing: output 0, log-sum-exp -inf.
    none = largest == -float("inf")
    result = tl.where((none & (total == 0))[:, None], 0.0, sums / tl.where(total == 0, 1.0, total)[:, None])
    row = (split * heads + number).to(tl.int64) * L + i
    places = row[:, None] * EV + w[None, :]
    tl.store(out + places, result.to(out.dtype.element_ty), mask=(i[:, None] < L) & (w[None, :] < EV))
    if KEEPS:
        natural = tl.where(none, -float("inf"), largest / UNIT)
        sum_log = natural + tl.log(tl.where(none & (total == 0), 1.0, total))
        tl.store(lse + row, sum_log.to(lse.dtype.element_ty), mask=i < tl.where(part == 0, L, 0))


@triton.jit
def join_splits(
    parts, part_lse, out, lse, rows, EV, splits,
    KEEPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """out (rows, EV), lse (rows,): the average of parts (splits, rows, EV), weighted by their log-sum-exps."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    w = tl.arange(0, BLOCK_V)
    here = row < rows
    largest = tl.full((BLOCK_M,), -float("inf"), COMPUTED)
    at = row
    for _ in range(0, splits):
        largest = tl.maximum(largest, tl.load(part_lse + at, mask=here, other=0.0))
        at += rows
    level = tl.where(largest == -float("inf"), 0.0, largest)
    total = tl.zeros((BLOCK_M,), COMPUTED)
    sums = tl.zeros((BLOCK_M, BLOCK_V), COMPUTED)
    at = row
    for _ in range(0, splits):
        factor = tl.exp(tl.load(part_lse + at, mask=here, other=0.0) - level)
        part = tl.load(parts + at[:, None] * EV + w[None, :], mask=here[:, None] & (w[None, :] < EV), other=0.0)
        total += factor
        # A part that sees nothing is 0, whatever the others are.
        sums += tl.where((factor == 0)[:, None], 0.0, part * factor[:, None])
        at += rows
    none = total == 0
    result = sums / tl.where(none, 1.0, total)[:, None]
    places = row[:, None] * EV + w[None, :]
    tl.store(out + places, result.to(out.dtype.element_ty), mask=here[:, None] & (w[None, :] < EV))
    if KEEPS:
        sum_log = tl.where(none, -float("inf"), level + tl.log(tl.where(none, 1.0, total)))
        tl.store(lse + row, sum_log.to(lse.dtype.element_ty), mask=here)
