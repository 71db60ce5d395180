"""The Triton kernels of attention's backward pass; names as in scores_triton.py and forward_triton.py.

The weights are made again from the log-sum-exp. Every gradient is summed by one program, or written to places of its
own, so that results have the same bits at every run. Equations: reference.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.forward_triton import add_product, load_rows, not_finite, wide_product
from kernels.attention.scores_triton import (
    kept_factors,
    key_range,
    keys_of_row,
    power,
    query_range,
    scores,
    whole_tiles,
)


@triton.jit
def row_products(
    grad, out, lse, grad_lse, delta, level, L, H, EV, rows, g_b, g_h, g_i, g_e, o_b, o_h, o_i, o_e, l_b, l_h, l_i,
    HAS_GRAD: tl.constexpr, HAS_LSE: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
    COMPUTED: tl.constexpr,
):  # fmt: skip
    """delta (rows,) = the sum of grad * out over a row, less the gradient of the log-sum-exp; level (rows,) = the
    log-sum-exp times UNIT, which is taken from the scores.

    A row that sees nothing has a level of 0. Of a log-sum-exp of +inf, which some forward passes make of a score of
    +inf, the weights are no numbers, and so is the level.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    w = tl.arange(0, BLOCK_V)[None, :]
    here = row < rows
    i = row % L
    h = row // L % H
    b = row // L // H
    found = tl.zeros((BLOCK_M,), COMPUTED)
    if HAS_GRAD:
        inside = here[:, None] & (w < EV)
        g = tl.load(grad + (b * g_b + h * g_h + i * g_i)[:, None] + w * g_e, mask=inside, other=0.0).to(COMPUTED)
        o = tl.load(out + (b * o_b + h * o_h + i * o_i)[:, None] + w * o_e, mask=inside, other=0.0).to(COMPUTED)
        found = tl.sum(g * o, 1)
    if HAS_LSE:
        found -= tl.load(grad_lse + b * l_b + h * l_h + i * l_i, mask=here, other=0.0).to(COMPUTED)
    tl.store(delta + row, found, mask=here)
    sum_log = tl.load(lse + row, mask=here, other=0.0).to(COMPUTED)
    sum_log = tl.where(sum_log == -float("inf"), 0.0, tl.where(sum_log == float("inf"), float("nan"), sum_log))
    tl.store(level + row, sum_log * UNIT, mask=here)


@triton.jit
def weights_of(y, seen, level, UNIT: tl.constexpr):
    """The weights, 0 where not seen, 1 at most. y: scores times UNIT. level: of `row_products`.

    Products summed up in another order than the forward pass took may leave a large score above its log-sum-exp.
    """
    above = tl.minimum(y - level, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(seen, power(above, UNIT), 0.0)


@triton.jit
def score_gradient(p, y, seen, d_weights, delta, CAP: tl.constexpr, UNIT: tl.constexpr):
    """The gradient of the scores before the cap, 0 where not seen, of weights p and their gradients."""
    dx = tl.where(seen, p * (d_weights - delta), 0.0)
    if CAP > 0:
        part = y / (CAP * UNIT)
        dx = tl.where(seen, dx * (1.0 - part * part), 0.0)
    return dx


@triton.jit
def over_keys(
    low, high, sums, behind, ahead, q, do, query, grad, key, value, mask, bias, term, seed, grad_term,
    row_level, row_delta, row, own_rows, number, i, e, w, L, S, E, EV, count, shift, g_i, g_e, q_i, q_e,
    k_j, k_e, v_j, v_e, mask_i, mask_j, bias_i, bias_j, term_i, term_row,
    SCALE: tl.constexpr, CAP: tl.constexpr, UNIT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    EDGE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, TERM: tl.constexpr, LIMIT: tl.constexpr,
    DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, KEPT: tl.constexpr, FOURS: tl.constexpr, SELECTS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr, WIDE: tl.constexpr, WHOLE_E: tl.constexpr,
    WHOLE_V: tl.constexpr, PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """(gradient of the queries, of the relative term behind and ahead) from the keys from low to high, added up."""
    lane = tl.arange(0, BLOCK_N)
    for start in range(low, high, BLOCK_N):
        j = start + lane
        k = load_rows(key, j, k_j, e, k_e, count, E, WHOLE_E, not EDGE)
        if WIDE:
            product = wide_product(
                query, i, q_i, q_e, L, key, j, k_j, k_e, count, E, BLOCK_E, PRECISION, COMPUTED
            )  # fmt: skip
        else:
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=COMPUTED)
        y, seen = scores(
            product, i[:, None], j[None, :], L, S, count, shift, mask, mask_i, mask_j, bias, bias_i, bias_j, term,
            term_i, term_row, SCALE, CAP, UNIT, LEFT, RIGHT, EDGE, HAS_MASK, HAS_BIAS, TERM, LIMIT, COMPUTED,
        )  # fmt: skip
        if WIDE:
            d_weights = wide_product(
                grad, i, g_i, g_e, L, value, j, v_j, v_e, count, EV, BLOCK_V, PRECISION, COMPUTED
            )  # fmt: skip
        else:
            v = load_rows(value, j, v_j, w, v_e, count, EV, WHOLE_V, not EDGE)
            d_weights = tl.dot(do, tl.trans(v), input_precision=PRECISION, out_dtype=COMPUTED)
        if DROPOUT:
            d_weights = d_weights * kept_factors(
                seed, number, i, start, BLOCK_N, L, S, THRESHOLD, KEPT, FOURS, COMPUTED
            )
        p = weights_of(y, seen, row_level, UNIT)
        dx = score_gradient(p, y, seen, d_weights, row_delta, CAP, UNIT)
        if TERM == 1:
            d = j[None, :] - i[:, None] - shift
            behind += tl.sum(tl.where(d <= -LIMIT, dx, 0.0), 1)
            ahead += tl.sum(tl.where((d >= LIMIT) & (d > -LIMIT), dx, 0.0), 1)
            # Between the clips a row of the table has one key of each query.
            own = grad_term + row[:, None] * (2 * LIMIT + 1) + (d + LIMIT)
            tl.store(own, dx, mask=seen & (i < own_rows)[:, None] & (d > -LIMIT) & (d < LIMIT))
        if TERM == 2:
            behind += tl.sum(dx * tl.abs(j[None, :] - i[:, None] - shift).to(COMPUTED), 1)
        sums = add_product(dx, k, sums, seen, SELECTS, PRECISION, COMPUTED)
    return sums, behind, ahead


@triton.jit
def query_gradient(
    grad, query, key, value, mask, bias, lengths, term, seed, level, delta, grad_query, grad_term, odd,
    H, GROUP, L, S, E, EV,
    g_b, g_h, g_i, g_e, q_b, q_h, q_i, q_e, k_b, k_h, k_j, k_e, v_b, v_h, v_j, v_e, mask_b, mask_h, mask_i, mask_j,
    bias_b, bias_h, bias_i, bias_j, term_b, term_h, term_i, term_row,
    SCALE: tl.constexpr, CAP: tl.constexpr, UNIT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    FROM_END: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    TERM: tl.constexpr, LIMIT: tl.constexpr, DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, KEPT: tl.constexpr,
    FOURS: tl.constexpr, APART: tl.constexpr, FLAGGED: tl.constexpr, SELECTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    WIDE: tl.constexpr, PARTS: tl.constexpr, WHOLE_E: tl.constexpr, WHOLE_V: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """grad_query (B, H, L, E); grad_term: for Shaw's (B, H, L, 2 LIMIT + 1), zero before, for ALiBi's a number a query.

    Programs: blocks of queries of each head.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(L, BLOCK_M)
    first = (blocks - 1 - program % blocks) * BLOCK_M
    part = program // blocks % PARTS
    number = program // blocks // PARTS
    if FLAGGED > 0:
        odd += program // blocks * tl.cdiv(L, FLAGGED) + first // FLAGGED
    if SELECTS:
        if tl.load(odd) == 0:
            return
    b = (number // H).to(tl.int64)
    h = (number % H).to(tl.int64)
    i = first + tl.arange(0, BLOCK_M)
    e = part * BLOCK_E + tl.arange(0, BLOCK_E)
    w = tl.arange(0, BLOCK_V)
    count, shift = keys_of_row(lengths, b, L, S, HAS_LENGTHS, FROM_END)
    query += b * q_b + h * q_h
    grad += b * g_b + h * g_h
    q = query
    do = grad
    if not WIDE:
        q = load_rows(query, i, q_i, e, q_e, L, E, WHOLE_E)
        do = load_rows(grad, i, g_i, w, g_e, L, EV, WHOLE_V)
    row = number.to(tl.int64) * L + i
    row_level = tl.load(level + row, mask=i < L, other=0.0)[:, None]
    row_delta = tl.load(delta + row, mask=i < L, other=0.0)[:, None]
    key += b * k_b + h // GROUP * k_h
    value += b * v_b + h // GROUP * v_h
    if HAS_MASK:
        mask += b * mask_b + h * mask_h
    if HAS_BIAS:
        bias += b * bias_b + h * bias_h
    if TERM > 0:
        term += b * term_b + h * term_h
    low, high = key_range(first, tl.minimum(first + BLOCK_M, L), count, shift, LEFT, RIGHT)
    sums = tl.zeros((BLOCK_M, BLOCK_E), COMPUTED)
    # Of the parts of the columns, the first one writes what is not by column.
    own_rows = tl.where(part == 0, L, 0)
    behind = tl.zeros((BLOCK_M,), COMPUTED)
    ahead = tl.zeros((BLOCK_M,), COMPUTED)
    low = low // BLOCK_N * BLOCK_N
    whole_low = high
    whole_high = high
    if APART:
        whole_low, whole_high = whole_tiles(
            low, high, first, tl.minimum(first + BLOCK_M, L), count, shift, LEFT, RIGHT, BLOCK_N
        )
    begin = low
    for zone in tl.static_range(3):  # as in attention_forward
        end = whole_low if zone == 0 else whole_high if zone == 1 else high
        if (APART and zone > 0) or (zone == 0 and (LEFT >= 0 or not APART)):
            sums, behind, ahead = over_keys(
                begin, end, sums, behind, ahead, q, do, query, grad, key, value, mask, bias, term, seed, grad_term,
                row_level, row_delta, row, own_rows, number, i, e, w, L, S, E, EV, count, shift, g_i, g_e, q_i, q_e,
                k_j, k_e, v_j, v_e, mask_i, mask_j, bias_i, bias_j, term_i, term_row, SCALE, CAP, UNIT, LEFT, RIGHT,
                zone != 1, HAS_MASK, HAS_BIAS, TERM, LIMIT, DROPOUT, THRESHOLD, KEPT, FOURS, SELECTS, BLOCK_N,
                BLOCK_E, BLOCK_V, WIDE, WHOLE_E, WHOLE_V, PRECISION, COMPUTED,
            )  # fmt: skip
        begin = end
    if FLAGGED > 0 and not SELECTS:
        tl.store(odd, not_finite(sums))
    places = row[:, None] * E + e[None, :]
    found = (sums * SCALE).to(grad_query.dtype.element_ty)
    tl.store(grad_query + places, found, mask=(i[:, None] < L) & (e[None, :] < E))
    if TERM == 1:
        if LIMIT == 0:
            tl.store(grad_term + row, behind + ahead, mask=i < own_rows)
        else:
            tl.store(grad_term + row * (2 * LIMIT + 1), behind, mask=i < own_rows)
            tl.store(grad_term + row * (2 * LIMIT + 1) + 2 * LIMIT, ahead, mask=i < own_rows)
    if TERM == 2:
        tl.store(grad_term + row, behind, mask=i < own_rows)


@triton.jit
def over_queries(
    low, high, key_sums, value_sums, k, v, key, value, query, grad, mask, bias, term, seed, level, delta,
    b, kv, first, j, e, w, H, GROUP, L, S, E, EV, count, shift, g_b, g_h, g_i, g_e, q_b, q_h, q_i, q_e, k_j, k_e,
    v_j, v_e, mask_b, mask_h, mask_i, mask_j, bias_b, bias_h, bias_i, bias_j, term_b, term_h, term_i, term_row,
    SCALE: tl.constexpr, CAP: tl.constexpr, UNIT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    EDGE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, TERM: tl.constexpr, LIMIT: tl.constexpr,
    DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, KEPT: tl.constexpr, FOURS: tl.constexpr, APART: tl.constexpr,
    SELECTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    WIDE: tl.constexpr, WHOLE_E: tl.constexpr, WHOLE_V: tl.constexpr, PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """(gradient of the keys, of the values) from the queries from low to high of each head of the group, added up."""
    lane = tl.arange(0, BLOCK_M)
    steps = tl.maximum(tl.cdiv(high - low, BLOCK_M), 0)
    # One loop over all tiles of all heads of the group; or (APART) one for each head, which moves more out of the loop,
    # and a product as soon as it can be taken: faster on sm_90, but elsewhere registers spill.
    for head in range(0, GROUP if APART else 1):
        for step in range(0, steps if APART else steps * GROUP):
            if APART:
                h = kv * GROUP + head
                i = low + step * BLOCK_M + lane
            else:
                h = kv * GROUP + step // steps
                i = low + step % steps * BLOCK_M + lane
            number = b * H + h
            q = load_rows(query + b * q_b + h * q_h, i, q_i, e, q_e, L, E, WHOLE_E, not EDGE)
            do = load_rows(grad + b * g_b + h * g_h, i, g_i, w, g_e, L, EV, WHOLE_V, not EDGE)
            if WIDE:
                product = wide_product(
                    key, j, k_j, k_e, count, query + b * q_b + h * q_h, i, q_i, q_e, L, E, BLOCK_E, PRECISION, COMPUTED
                )  # fmt: skip
            else:
                product = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=COMPUTED)
            y, seen = scores(
                product, i[None, :], j[:, None], L, S, count, shift, mask + b * mask_b + h * mask_h, mask_i, mask_j,
                bias + b * bias_b + h * bias_h, bias_i, bias_j, term + b * term_b + h * term_h, term_i, term_row,
                SCALE, CAP, UNIT, LEFT, RIGHT, EDGE, HAS_MASK, HAS_BIAS, TERM, LIMIT, COMPUTED,
            )  # fmt: skip
            row = number * L + i
            if EDGE:
                row_level = tl.load(level + row, mask=i < L, other=0.0)[None, :]
                row_delta = tl.load(delta + row, mask=i < L, other=0.0)[None, :]
            else:
                row_level = tl.load(level + row)[None, :]
                row_delta = tl.load(delta + row)[None, :]
            p = weights_of(y, seen, row_level, UNIT)
            kept = p
            if DROPOUT:
                factors = tl.trans(
                    kept_factors(seed, number, i, first, BLOCK_N, L, S, THRESHOLD, KEPT, FOURS, COMPUTED)
                )
                kept = p * factors
            if APART:
                value_sums = add_product(kept, do, value_sums, seen, SELECTS, PRECISION, COMPUTED)
            if WIDE:
                d_weights = wide_product(
                    value, j, v_j, v_e, count, grad + b * g_b + h * g_h, i, g_i, g_e, L, EV, BLOCK_V, PRECISION,
                    COMPUTED,
                )  # fmt: skip
            else:
                d_weights = tl.dot(v, tl.trans(do), input_precision=PRECISION, out_dtype=COMPUTED)
            if DROPOUT:
                d_weights = d_weights * factors
            dx = score_gradient(p, y, seen, d_weights, row_delta, CAP, UNIT)
            if not APART:
                value_sums = add_product(kept, do, value_sums, seen, SELECTS, PRECISION, COMPUTED)
            key_sums = add_product(dx, q, key_sums, seen, SELECTS, PRECISION, COMPUTED)
    return key_sums, value_sums


@triton.jit
def key_gradients(
    grad, query, key, value, mask, bias, lengths, term, seed, level, delta, grad_key, grad_value, odd,
    H, GROUP, L, S, E, EV,
    g_b, g_h, g_i, g_e, q_b, q_h, q_i, q_e, k_b, k_h, k_j, k_e, v_b, v_h, v_j, v_e, mask_b, mask_h, mask_i, mask_j,
    bias_b, bias_h, bias_i, bias_j, term_b, term_h, term_i, term_row,
    SCALE: tl.constexpr, CAP: tl.constexpr, UNIT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    FROM_END: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    TERM: tl.constexpr, LIMIT: tl.constexpr, DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, KEPT: tl.constexpr,
    FOURS: tl.constexpr, APART: tl.constexpr, FLAGGED: tl.constexpr, SELECTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    WIDE: tl.constexpr, PARTS: tl.constexpr, WHOLE_E: tl.constexpr, WHOLE_V: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """grad_key (B, H / GROUP, S, E) and grad_value (B, H / GROUP, S, EV), summed over the group's heads in turn.

    Programs: blocks of keys of each head of keys. Tiles are (keys, queries).
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(S, BLOCK_N)
    first = program % blocks * BLOCK_N
    kv_heads = H // GROUP
    if FLAGGED > 0:
        odd += program // blocks * tl.cdiv(S, FLAGGED) + first // FLAGGED
    if SELECTS:
        if tl.load(odd) == 0:
            return
    part = program // blocks % PARTS
    b = (program // blocks // PARTS // kv_heads).to(tl.int64)
    kv = (program // blocks // PARTS % kv_heads).to(tl.int64)
    j = first + tl.arange(0, BLOCK_N)
    e = part * BLOCK_E + tl.arange(0, BLOCK_E)
    w = part * BLOCK_V + tl.arange(0, BLOCK_V)
    count, shift = keys_of_row(lengths, b, L, S, HAS_LENGTHS, FROM_END)
    key += b * k_b + kv * k_h
    value += b * v_b + kv * v_h
    k = key
    v = value
    if not WIDE:
        k = load_rows(key, j, k_j, e, k_e, count, E, WHOLE_E)
        v = load_rows(value, j, v_j, w, v_e, count, EV, WHOLE_V)
    low, high = query_range(first, tl.minimum(first + BLOCK_N, count), L, shift, LEFT, RIGHT)
    high = tl.where(first < count, high, low)
    low = low // BLOCK_M * BLOCK_M
    key_sums = tl.zeros((BLOCK_N, BLOCK_E), COMPUTED)
    value_sums = tl.zeros((BLOCK_N, BLOCK_V), COMPUTED)
    whole_low = high
    whole_high = high
    if APART:
        # A block with places behind the last key sees nothing whole.
        most = tl.where(first + BLOCK_N <= count, high, low)
        whole_low, whole_high = whole_tiles(low, most, first, first + BLOCK_N, L, -shift, RIGHT, LEFT, BLOCK_M)
    begin = low
    for zone in tl.static_range(3):  # as in attention_forward
        end = whole_low if zone == 0 else whole_high if zone == 1 else high
        if (APART and zone > 0) or (zone == 0 and (RIGHT >= 0 or not APART)):
            key_sums, value_sums = over_queries(
                begin, end, key_sums, value_sums, k, v, key, value, query, grad, mask, bias, term, seed, level, delta,
                b, kv, first, j, e, w, H, GROUP, L, S, E, EV, count, shift, g_b, g_h, g_i, g_e, q_b, q_h, q_i, q_e,
                k_j, k_e, v_j, v_e, mask_b, mask_h, mask_i, mask_j, bias_b, bias_h, bias_i, bias_j, term_b, term_h,
                term_i, term_row, SCALE, CAP, UNIT, LEFT, RIGHT, zone != 1, HAS_MASK, HAS_BIAS, TERM, LIMIT, DROPOUT,
                THRESHOLD,
                KEPT, FOURS, APART, SELECTS, BLOCK_M, BLOCK_N, BLOCK_E, BLOCK_V, WIDE, WHOLE_E, WHOLE_V, PRECISION,
                COMPUTED,
            )  # fmt: skip
        begin = end
    if FLAGGED > 0 and not SELECTS:
        tl.store(odd, tl.maximum(not_finite(key_sums), not_finite(value_sums)))
    # A query that is no number reaches no key that the row does not have.
    key_sums = tl.where(j[:, None] < count, key_sums, 0.0)
    value_sums = tl.where(j[:, None] < count, value_sums, 0.0)
    row = (b * kv_heads + kv) * S + j
    found = (key_sums * SCALE).to(grad_key.dtype.element_ty)
    tl.store(grad_key + row[:, None] * E + e[None, :], found, mask=(j[:, None] < S) & (e[None, :] < E))
    found = value_sums.to(grad_value.dtype.element_ty)
    tl.store(grad_value + row[:, None] * EV + w[None, :], found, mask=(j[:, None] < S) & (w[None, :] < EV))
