"""The Triton kernels of attention's backward pass; names as in scores_triton.py and forward_triton.py.

The weights are made again from the log-sum-exp. Every gradient is summed by one program, or written to places of its
own, so that results have the same bits at every run. Equations: reference.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.forward_triton import add_product, load_rows, not_finite, wide_product
from kernels.attention.scores_triton import kept_factors, key_range, keys_of_row, query_range, scores


@triton.jit
def row_products(
    grad, out, grad_lse, delta, L, H, EV, rows, g_b, g_h, g_i, g_e, o_b, o_h, o_i, o_e, l_b, l_h, l_i,
    HAS_GRAD: tl.constexpr, HAS_LSE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
    COMPUTED: tl.constexpr,
):  # fmt: skip
    """delta (rows,) = the sum of grad * out over a row, less the gradient of the log-sum-exp."""
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


@triton.jit
def weights_and_gradient(y, seen, d_weights, lse, delta, CAP: tl.constexpr):
    """(weights, gradient of the scores before the cap), 0 where not seen.

    Of a log-sum-exp of +inf, which some forward passes make of a score of +inf, the weights are no numbers.
    """
    level = tl.where(lse == -float("inf"), 0.0, tl.where(lse == float("inf"), float("nan"), lse))
    p = tl.where(seen, tl.exp(y - level), 0.0)
    dx = tl.where(seen, p * (d_weights - delta), 0.0)
    if CAP > 0:
        part = y / CAP
        dx = tl.where(seen, dx * (1.0 - part * part), 0.0)
    return p, dx


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
def query_gradient(
    grad, query, key, value, mask, bias, lengths, term, seed, lse, delta, grad_query, grad_term, odd,
    H, GROUP, L, S, E, EV,
    g_b, g_h, g_i, g_e, q_b, q_h, q_i, q_e, k_b, k_h, k_j, k_e, v_b, v_h, v_j, v_e, mask_b, mask_h, mask_i, mask_j,
    bias_b, bias_h, bias_i, bias_j, term_b, term_h, term_i, term_row,
    SCALE: tl.constexpr, CAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, FROM_END: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, TERM: tl.constexpr,
    LIMIT: tl.constexpr, DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, KEPT: tl.constexpr,
    FLAGGED: tl.constexpr, SELECTS: tl.constexpr,
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
    lane = tl.arange(0, BLOCK_N)
    e = part * BLOCK_E + tl.arange(0, BLOCK_E)
    w = tl.arange(0, BLOCK_V)
    count, shift = keys_of_row(lengths, b, L, S, HAS_LENGTHS, FROM_END)
    query += b * q_b + h * q_h
    grad += b * g_b + h * g_h
    if not WIDE:
        q = load_rows(query, i, q_i, e, q_e, L, E, WHOLE_E)
        do = load_rows(grad, i, g_i, w, g_e, L, EV, WHOLE_V)
    row = number.to(tl.int64) * L + i
    row_lse = tl.load(lse + row, mask=i < L, other=float("inf"))[:, None].to(COMPUTED)
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
    for start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
        j = start + lane
        k = load_rows(key, j, k_j, e, k_e, count, E, WHOLE_E)
        if WIDE:
            product = wide_product(
                query, i, q_i, q_e, L, key, j, k_j, k_e, count, E, BLOCK_E, PRECISION, COMPUTED
            )  # fmt: skip
        else:
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=COMPUTED)
        y, seen = scores(
            product, i[:, None], j[None, :], L, S, count, shift, mask, mask_i, mask_j, bias, bias_i, bias_j, term,
            term_i, term_row, SCALE, CAP, LEFT, RIGHT, True, HAS_MASK, HAS_BIAS, TERM, LIMIT, COMPUTED,
        )  # fmt: skip
        if WIDE:
            d_weights = wide_product(
                grad, i, g_i, g_e, L, value, j, v_j, v_e, count, EV, BLOCK_V, PRECISION, COMPUTED
            )  # fmt: skip
        else:
            v = load_rows(value, j, v_j, w, v_e, count, EV, WHOLE_V)
            d_weights = tl.dot(do, tl.trans(v), input_precision=PRECISION, out_dtype=COMPUTED)
        if DROPOUT:
            d_weights = d_weights * kept_factors(seed, number, i[:, None], j[None, :], L, S, THRESHOLD, KEPT, COMPUTED)
        _, dx = weights_and_gradient(y, seen, d_weights, row_lse, row_delta, CAP)
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
def key_gradients(
    grad, query, key, value, mask, bias, lengths, term, seed, lse, delta, grad_key, grad_value, odd,
    H, GROUP, L, S, E, EV,
    g_b, g_h, g_i, g_e, q_b, q_h, q_i, q_e, k_b, k_h, k_j, k_e, v_b, v_h, v_j, v_e, mask_b, mask_h, mask_i, mask_j,
    bias_b, bias_h, bias_i, bias_j, term_b, term_h, term_i, term_row,
    SCALE: tl.constexpr, CAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, FROM_END: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, TERM: tl.constexpr,
    LIMIT: tl.constexpr, DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, KEPT: tl.constexpr,
    FLAGGED: tl.constexpr, SELECTS: tl.constexpr,
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
    lane = tl.arange(0, BLOCK_M)
    e = part * BLOCK_E + tl.arange(0, BLOCK_E)
    w = part * BLOCK_V + tl.arange(0, BLOCK_V)
    count, shift = keys_of_row(lengths, b, L, S, HAS_LENGTHS, FROM_END)
    key += b * k_b + kv * k_h
    value += b * v_b + kv * v_h
    if not WIDE:
        k = load_rows(key, j, k_j, e, k_e, count, E, WHOLE_E)
        v = load_rows(value, j, v_j, w, v_e, count, EV, WHOLE_V)
    low, high = query_range(first, tl.minimum(first + BLOCK_N, count), L, shift, LEFT, RIGHT)
    high = tl.where(first < count, high, low)
    low = low // BLOCK_M * BLOCK_M
    key_sums = tl.zeros((BLOCK_N, BLOCK_E), COMPUTED)
    value_sums = tl.zeros((BLOCK_N, BLOCK_V), COMPUTED)
    # One loop over all tiles of all heads of the group.
    steps = tl.maximum(tl.cdiv(high - low, BLOCK_M), 0)
    for step in range(0, steps * GROUP):
        h = kv * GROUP + step // steps
        number = b * H + h
        i = low + step % steps * BLOCK_M + lane
        q = load_rows(query + b * q_b + h * q_h, i, q_i, e, q_e, L, E, WHOLE_E)
        do = load_rows(grad + b * g_b + h * g_h, i, g_i, w, g_e, L, EV, WHOLE_V)
        if WIDE:
            product = wide_product(
                key, j, k_j, k_e, count, query + b * q_b + h * q_h, i, q_i, q_e, L, E, BLOCK_E, PRECISION, COMPUTED
            )  # fmt: skip
        else:
            product = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=COMPUTED)
        y, seen = scores(
            product, i[None, :], j[:, None], L, S, count, shift, mask + b * mask_b + h * mask_h, mask_i, mask_j,
            bias + b * bias_b + h * bias_h, bias_i, bias_j, term + b * term_b + h * term_h, term_i, term_row,
            SCALE, CAP, LEFT, RIGHT, True, HAS_MASK, HAS_BIAS, TERM, LIMIT, COMPUTED,
        )  # fmt: skip
        row = number * L + i
        row_lse = tl.load(lse + row, mask=i < L, other=float("inf"))[None, :].to(COMPUTED)
        row_delta = tl.load(delta + row, mask=i < L, other=0.0)[None, :]
        if WIDE:
            d_weights = wide_product(
                value, j, v_j, v_e, count, grad + b * g_b + h * g_h, i, g_i, g_e, L, EV, BLOCK_V, PRECISION, COMPUTED
            )  # fmt: skip
        else:
            d_weights = tl.dot(v, tl.trans(do), input_precision=PRECISION, out_dtype=COMPUTED)
        if DROPOUT:
            factors = kept_factors(seed, number, i[None, :], j[:, None], L, S, THRESHOLD, KEPT, COMPUTED)
            d_weights = d_weights * factors
        p, dx = weights_and_gradient(y, seen, d_weights, row_lse, row_delta, CAP)
        if DROPOUT:
            p = p * factors
        value_sums = add_product(p, do, value_sums, seen, SELECTS, PRECISION, COMPUTED)
        key_sums = add_product(dx, q, key_sums, seen, SELECTS, PRECISION, COMPUTED)
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


@triton.jit
def bias_gradient(
    grad, query, key, value, mask, bias, lengths, term, seed, lse, delta, grad_bias, H, GROUP, L, S, E, EV, B,
    of_b, of_h, of_i, of_j,
    g_b, g_h, g_i, g_e, q_b, q_h, q_i, q_e, k_b, k_h, k_j, k_e, v_b, v_h, v_j, v_e, mask_b, mask_h, mask_i, mask_j,
    bias_b, bias_h, bias_i, bias_j, term_b, term_h, term_i, term_row,
    SCALE: tl.constexpr, CAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, FROM_END: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, TERM: tl.constexpr,
    LIMIT: tl.constexpr, DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, KEPT: tl.constexpr,
    SUM_B: tl.constexpr, SUM_H: tl.constexpr, SUM_I: tl.constexpr, SUM_J: tl.constexpr,
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
        j = at_j * BLOCK_N + tl.arange(0, BLOCK_N)
        product = product_of_rows(
            query + b * q_b + h * q_h, i, q_i, q_e, L, key + b * k_b + h // GROUP * k_h, j, k_j, k_e, count, E,
            BLOCK_E, WIDE, WHOLE_E, PRECISION, COMPUTED,
        )  # fmt: skip
        y, seen = scores(
            product, i[:, None], j[None, :], L, S, count, shift, mask + b * mask_b + h * mask_h, mask_i, mask_j,
            bias + b * bias_b + h * bias_h, bias_i, bias_j, term + b * term_b + h * term_h, term_i, term_row,
            SCALE, CAP, LEFT, RIGHT, True, HAS_MASK, HAS_BIAS, TERM, LIMIT, COMPUTED,
        )  # fmt: skip
        row = number * L + i
        row_lse = tl.load(lse + row, mask=i < L, other=float("inf"))[:, None].to(COMPUTED)
        row_delta = tl.load(delta + row, mask=i < L, other=0.0)[:, None]
        d_weights = product_of_rows(
            grad + b * g_b + h * g_h, i, g_i, g_e, L, value + b * v_b + h // GROUP * v_h, j, v_j, v_e, count, EV,
            BLOCK_V, WIDE, WHOLE_V, PRECISION, COMPUTED,
        )  # fmt: skip
        if DROPOUT:
            d_weights = d_weights * kept_factors(seed, number, i[:, None], j[None, :], L, S, THRESHOLD, KEPT, COMPUTED)
        _, dx = weights_and_gradient(y, seen, d_weights, row_lse, row_delta, CAP)
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
    grad, query, key, value, mask, bias, lengths, term, seed, lse, delta, buckets, sums_of, H, GROUP, L, S, E, EV,
    g_b, g_h, g_i, g_e, q_b, q_h, q_i, q_e, k_b, k_h, k_j, k_e, v_b, v_h, v_j, v_e, mask_b, mask_h, mask_i, mask_j,
    bias_b, bias_h, bias_i, bias_j, term_b, term_h, term_i, term_row,
    SCALE: tl.constexpr, CAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, FROM_END: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, TERM: tl.constexpr,
    LIMIT: tl.constexpr, DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, KEPT: tl.constexpr, BUCKETS: tl.constexpr,
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
    row_lse = tl.load(lse + row, mask=i < L, other=float("inf"))[:, None].to(COMPUTED)
    row_delta = tl.load(delta + row, mask=i < L, other=0.0)[:, None]
    low, high = key_range(first, tl.minimum(first + BLOCK_M, L), count, shift, LEFT, RIGHT)
    sums = tl.zeros((BUCKETS,), COMPUTED)
    for start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        product = product_of_rows(
            query + b * q_b + h * q_h, i, q_i, q_e, L, key + b * k_b + h // GROUP * k_h, j, k_j, k_e, count, E,
            BLOCK_E, WIDE, WHOLE_E, PRECISION, COMPUTED,
        )  # fmt: skip
        y, seen = scores(
            product, i[:, None], j[None, :], L, S, count, shift, mask + b * mask_b + h * mask_h, mask_i, mask_j,
            bias + b * bias_b + h * bias_h, bias_i, bias_j, term + b * term_b + h * term_h, term_i, term_row,
            SCALE, CAP, LEFT, RIGHT, True, HAS_MASK, HAS_BIAS, TERM, LIMIT, COMPUTED,
        )  # fmt: skip
        d_weights = product_of_rows(
            grad + b * g_b + h * g_h, i, g_i, g_e, L, value + b * v_b + h // GROUP * v_h, j, v_j, v_e, count, EV,
            BLOCK_V, WIDE, WHOLE_V, PRECISION, COMPUTED,
        )  # fmt: skip
        if DROPOUT:
            d_weights = d_weights * kept_factors(seed, number, i[:, None], j[None, :], L, S, THRESHOLD, KEPT, COMPUTED)
        _, dx = weights_and_gradient(y, seen, d_weights, row_lse, row_delta, CAP)
        place = j[None, :] - i[:, None] - shift + (tl.maximum(L, S) - 1)
        own = tl.load(buckets + place, mask=seen, other=-1)
        least = tl.min(tl.where(seen, own, BUCKETS))
        # Far from the diagonal the places of a tile share a bucket or two.
        for c in range(least, tl.max(own) + 1):
            sums += tl.where(bucket == c, tl.sum(tl.where(own == c, dx, 0.0)), 0.0)
    tl.store(sums_of + program.to(tl.int64) * BUCKETS + bucket, sums)
