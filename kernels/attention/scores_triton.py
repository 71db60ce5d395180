"""What Triton's attention kernels share: which keys a query sees, and the scores of a tile before the softmax.

Places of a tile are two 2-d index arrays that broadcast to it, i of queries and j of keys, so that a tile may be
(queries, keys) or (keys, queries). Names that all kernels use:

    shift       position of query 0: count - L where the last query stands at the last key, else 0
    count       keys that the row of the batch has
    LEFT, RIGHT how many keys before and after its position a query sees; -1 for all of them
    CAP         softcap, 0.0 for none
    TERM        relative term: 0 none, 1 Shaw's (`term` (B, H, L, rows) is scale * q . table), 2 ALiBi's slopes (H,),
                3 T5's: `term` (H, distances) of the distances 1 - max(L, S) to max(L, S) - 1
    LIMIT       Shaw's clip
    UNIT        what scores are multiplied by: log2(e) where exp2, the GPU's own function, takes the place of exp, which
                costs a multiplication more; 1.0 where the digits matter more, in float32 and float64
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keys_of_row(lengths, b, L, S, HAS_LENGTHS: tl.constexpr, FROM_END: tl.constexpr):
    """(count, shift) of a row of the batch."""
    count = S
    if HAS_LENGTHS:
        # Lengths are checked before, but not while a CUDA graph is captured.
        count = tl.minimum(tl.maximum(tl.load(lengths + b), 0), S).to(tl.int32)
    shift = 0
    if FROM_END:
        shift = count - L
    return count, shift


@triton.jit
def key_range(first, last, count, shift, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Keys [low, high) that some query from first to last - 1 may see."""
    low = 0
    high = count
    if LEFT >= 0:
        low = tl.maximum(low, first + shift - LEFT)
    if RIGHT >= 0:
        high = tl.minimum(high, last + shift + RIGHT)
    return low, high


@triton.jit
def query_range(first, last, L, shift, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Queries [low, high) that may see some key from first to last - 1."""
    low = 0
    high = L
    if RIGHT >= 0:
        low = tl.maximum(low, first - shift - RIGHT)
    if LEFT >= 0:
        high = tl.minimum(high, last - shift + LEFT)
    return low, high


@triton.jit
def whole_tiles(low, high, first, last, count, shift, LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCK: tl.constexpr):
    """(from, to) of the tiles of keys between low and high that all queries from first to last - 1 see whole.

    low is a multiple of BLOCK, as are both bounds; low where there is no such tile.
    """
    begin = low
    end = tl.minimum(high, count)
    if LEFT >= 0:
        begin = tl.maximum(low, tl.cdiv(last - 1 + shift - LEFT, BLOCK) * BLOCK)
    if RIGHT >= 0:
        end = tl.minimum(end, first + shift + RIGHT + 1)
    end = low + tl.maximum(end - low, 0) // BLOCK * BLOCK
    return tl.minimum(begin, end), end


@triton.jit
def power(y, UNIT: tl.constexpr):
    """exp of scores that were multiplied by UNIT."""
    if UNIT == 1:
        return tl.exp(y)
    else:
        return tl.exp2(y)


@triton.jit
def scores(
    product, i, j, L, S, count, shift, mask, mask_i, mask_j, bias, bias_i, bias_j, term, term_i, term_row,
    SCALE: tl.constexpr, CAP: tl.constexpr, UNIT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    EDGE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, TERM: tl.constexpr, LIMIT: tl.constexpr,
    COMPUTED: tl.constexpr,
):  # fmt: skip
    """(scores times UNIT, what of the tile is seen) from products of queries and keys; mask, bias and term begin at
    (b, h, 0, 0).

    EDGE: some place of the tile may lie outside of the arrays or of what its query sees by position; queries behind the
    last one do no harm.
    """
    PLAIN: tl.constexpr = CAP == 0 and TERM == 0 and not HAS_BIAS
    y = product * (SCALE * UNIT if PLAIN else SCALE)
    seen = tl.full(product.shape, 1, tl.int1)
    if EDGE:
        seen = (i < L) & (j < count)
    elif HAS_MASK or HAS_BIAS or TERM == 1 or TERM == 3:
        seen = (i < L) & seen
    inside = seen
    if EDGE:
        if LEFT >= 0:
            seen = seen & (j >= i + (shift - LEFT))
        if RIGHT >= 0:
            seen = seen & (j <= i + (shift + RIGHT))
    if HAS_MASK:
        given = tl.load(mask + i.to(tl.int64) * mask_i + j.to(tl.int64) * mask_j, mask=seen, other=0) != 0
        if COMPUTED == tl.float64:
            # The same, behind a maximum, which the compiler moves nothing across: else Triton 3.6 brings the mask's
            # bytes to where tensor cores read, and fails.
            bits = tl.where(given, 1.0, 0.0)
            given = tl.max(tl.join(bits, bits), 2) > 0
        seen = seen & given
    if HAS_BIAS:
        added = tl.load(bias + i.to(tl.int64) * bias_i + j.to(tl.int64) * bias_j, mask=seen, other=0.0).to(COMPUTED)
        seen = seen & (added != -float("inf"))
        y = y + added
    if TERM == 1:
        row = tl.minimum(tl.maximum(j - i - shift, -LIMIT), LIMIT) + LIMIT
        y = y + tl.load(term + i.to(tl.int64) * term_i + row * term_row, mask=inside, other=0.0).to(COMPUTED)
    if TERM == 2:
        y = y - tl.load(term).to(COMPUTED) * tl.abs(j - i - shift).to(COMPUTED)
    if TERM == 3:
        place = j - i - shift + (tl.maximum(L, S) - 1)
        y = y + tl.load(term + place * term_row, mask=inside, other=0.0).to(COMPUTED)
    if CAP > 0:
        y = CAP * _tanh(y / CAP, COMPUTED)
    if not PLAIN:
        y = y * UNIT
    return y, seen


@triton.jit
def _tanh(x, COMPUTED: tl.constexpr):
    """tanh without overflow. Near 0, where 1 - exp(-2|x|) loses digits, by its series."""
    size = tl.abs(x)
    power = tl.exp(-2.0 * size)
    far = (1.0 - power) / (1.0 + power)
    square = size * size
    if COMPUTED == tl.float64:
        near = size * (1.0 - square * (1.0 / 3.0))
        found = tl.where(size < 1e-4, near, far)
    else:
        series = 17.0 / 315.0 - square * (62.0 / 2835.0)
        near = size * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * series)))
        found = tl.where(size < 0.25, near, far)
    return tl.where(x < 0, -found, found)


@triton.jit
def kept_factors(
    seed, number, i, first, KEYS: tl.constexpr, L, S,
    THRESHOLD: tl.constexpr, KEPT: tl.constexpr, FOURS: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    """Dropout's factor of each place of a tile (queries i, KEYS keys from `first`), KEPT or 0: see kernels.random.

    number: of the head, b * H + h. FOURS: S is a multiple of 4, as `first` is, so that the four words of a block belong
    to four neighbours.
    """
    row = (number.to(tl.int64) * L + i.to(tl.int64))[:, None] * S
    if FOURS:
        block = ((row + first) >> 2) + tl.arange(0, KEYS // 4)[None, :]
    else:
        element = row + first + tl.arange(0, KEYS)[None, :]
        block = element >> 2
    low = (block & 0xFFFFFFFF).to(tl.uint32)
    high = (block >> 32).to(tl.uint32)
    zero = low * 0
    a, b, c, d = tl.philox(tl.load(seed), low, high, zero, zero)
    if FOURS:
        a, b, c, d = _kept(a, THRESHOLD), _kept(b, THRESHOLD), _kept(c, THRESHOLD), _kept(d, THRESHOLD)
        kept = tl.join(tl.join(a, c), tl.join(b, d)).reshape(i.shape[0], KEYS)
    else:
        word = (element & 3).to(tl.int32)
        kept = _kept(tl.where(word < 2, tl.where(word == 0, a, b), tl.where(word == 2, c, d)), THRESHOLD)
    return tl.where(kept != 0, tl.full((1, 1), KEPT, COMPUTED), 0.0)


@triton.jit
def _kept(word, THRESHOLD: tl.constexpr):
    """1 where a word does not lie below the threshold, as small numbers: they change their places in a tile."""
    if THRESHOLD > 0xFFFFFFFF:
        return tl.zeros(word.shape, tl.int8)
    else:
        return (word >= tl.full((1, 1), THRESHOLD, tl.uint32)).to(tl.int8)
