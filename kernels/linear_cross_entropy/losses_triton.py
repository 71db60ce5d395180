"""The Triton kernels of linear_cross_entropy's forward pass: losses of logits that are never in memory.

A program has some rows and a part of the classes. It makes a tile of their logits at a time, by a product on tensor
cores, and keeps of each row what cross_entropy takes from them: the maximum, the sum of exp(z - maximum) (Milakov and
Gimelshein, Online normalizer calculation for softmax, 2018), the logit of the row's class, and where the targets are
made smooth the sum of w_c * (maximum - z_c). A second kernel joins the parts. Wijmans et al., Cut Your Losses in
Large-Vocabulary Language Models (2024), take the same way.

Names as in softmax/cross_entropy_triton.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.softmax.cross_entropy_triton import class_terms, class_weights


@triton.jit
def statistics_of_products(
    x, matrix, bias, target, weight, maxima, totals, of_class, dense, weight_sums,
    rows, features, classes, part, x_row, x_n, matrix_row, matrix_n, target_n, weight_n,
    HAS_BIAS: tl.constexpr, SMOOTH: tl.constexpr, WEIGHTED: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """What the logits x @ matrix.T + bias of `part` classes say of each row: rows of arrays (parts, rows).

    x (rows, features), matrix (classes, features), bias (classes,), target (rows,): class indices. weight_sums
    (parts,): of the classes' weights, where SMOOTH. WHOLE: INNER divides the features. Programs: blocks of rows, the
    fastest, so that those that run at a time read the same rows of the matrix; then parts.
    """
    blocks = tl.cdiv(rows, ROWS)
    program = tl.program_id(0)
    number = (program // blocks).to(tl.int64)
    row = (program % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < rows
    lane = tl.arange(0, COLUMNS)
    inner = tl.arange(0, INNER)
    index = tl.load(target + row * target_n, mask=here, other=-1).to(tl.int64)
    largest = tl.full((ROWS,), -float("inf"), COMPUTED)
    total = tl.zeros((ROWS,), COMPUTED)
    own = tl.zeros((ROWS,), COMPUTED)
    below = tl.zeros((ROWS,), COMPUTED)
    weights_so_far = tl.zeros((), COMPUTED)
    begin = program // blocks * part
    for first in range(begin, tl.minimum(begin + part, classes), COLUMNS):
        c = first + lane
        logits = tl.zeros((ROWS, COLUMNS), COMPUTED)
        for n in range(0, features, INNER):
            f = n + inner
            left = x + (row * x_row)[:, None] + f[None, :] * x_n
            right = matrix + (c.to(tl.int64) * matrix_row)[None, :] + f[:, None] * matrix_n
            if WHOLE:
                a = tl.load(left, mask=here[:, None], other=0.0)
                b = tl.load(right, mask=(c < classes)[None, :], other=0.0)
            else:
                a = tl.load(left, mask=here[:, None] & (f < features)[None, :], other=0.0)
                b = tl.load(right, mask=(c < classes)[None, :] & (f < features)[:, None], other=0.0)
            logits = tl.dot(a, b, logits, input_precision=PRECISION, out_dtype=COMPUTED)
        if HAS_BIAS:
            logits += tl.load(bias + c, mask=c < classes, other=0.0).to(COMPUTED)[None, :]
        logits = tl.where((c < classes)[None, :], logits, -float("inf"))
        found = tl.maximum(largest, tl.max(logits, 1))
        # With nothing above -inf so far there is no difference to it.
        shift = tl.where(found == -float("inf"), 0.0, found)
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(logits - shift[:, None]), 1)
        own += tl.sum(tl.where(c[None, :] == index[:, None], logits, 0.0), 1)
        if SMOOTH:
            weights = class_weights(weight, weight_n, c, classes, WEIGHTED, COMPUTED)
            terms = weights * tl.where(logits == -float("inf"), float("inf"), found[:, None] - logits)
            # Where all were -inf so far, their terms are infinite, whatever the maximum.
            below += tl.where(largest == -float("inf"), 0.0, weights_so_far * (found - largest))
            below += tl.sum(tl.where((c < classes)[None, :], terms, 0.0), 1)
            weights_so_far += tl.sum(weights)
        largest = found
    place = number * rows + row
    tl.store(maxima + place, largest, mask=here)
    tl.store(totals + place, total, mask=here)
    tl.store(of_class + place, own, mask=here)
    if SMOOTH:
        tl.store(dense + place, below, mask=here)
        tl.store(weight_sums + number, weights_so_far, mask=program % blocks == 0)


@triton.jit
def losses_of_parts(
    maxima, totals, of_class, dense, weight_sums, target, weight, losses, maximum, log_sum,
    rows, classes, parts, target_n, weight_n, ignore_index,
    SMOOTHING: tl.constexpr, WEIGHTED: tl.constexpr, KEEPS: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """losses (rows,), and where KEEPS maximum and log_sum (rows,), from `statistics_of_products`."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = row < rows
    largest = tl.full((BLOCK,), -float("inf"), COMPUTED)
    place = row
    for _ in range(0, parts):
        largest = tl.maximum(largest, tl.load(maxima + place, mask=here, other=0.0))
        place += rows
    shift = tl.where(largest == -float("inf"), 0.0, largest)
    total = tl.zeros((BLOCK,), COMPUTED)
    own = tl.zeros((BLOCK,), COMPUTED)
    below = tl.zeros((BLOCK,), COMPUTED)
    all_weights = tl.zeros((), COMPUTED)
    place = row
    for part in range(0, parts):
        level = tl.load(maxima + place, mask=here, other=0.0)
        total += tl.load(totals + place, mask=here, other=0.0) * tl.exp(level - shift)
        own += tl.load(of_class + place, mask=here, other=0.0)
        if SMOOTHING != 0:
            weights = tl.load(weight_sums + part)
            below += tl.load(dense + place, mask=here, other=0.0)
            below += tl.where(level == -float("inf"), 0.0, weights * (largest - level))
            all_weights += weights
        place += rows
    logs = tl.log(total)
    _, factor, counts = class_terms(
        target, row * target_n, weight, weight_n, classes, here, ignore_index, WEIGHTED, COMPUTED
    )
    loss = factor * (1.0 - SMOOTHING) * ((largest - own) + logs)
    if SMOOTHING != 0:
        loss += tl.full((), SMOOTHING, COMPUTED) / classes * (below + all_weights * logs)
    tl.store(losses + row, tl.where(counts, loss, 0.0), mask=here)
    if KEEPS:
        tl.store(maximum + row, largest, mask=here)
        tl.store(log_sum + row, logs, mask=here)
