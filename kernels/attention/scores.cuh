// Which keys a query sees, and the scores of a row before the softmax; the same for every kernel of attention.
//
// Names that all of them use:
//   count        keys that the row of the batch has
//   shift        position of query 0: count - L where the last query stands at the last key, else 0
//   left, right  how many keys before and after its position a query sees; -1: all of them
//   cap          softcap, 0 for none
//   limit        of the relative term: a number for each clipped distance (term[b, h, i, clip(d) + limit]); -1 for
//                ALiBi's slopes (term[h])
// EXTRAS: a score may be more than a product: bias, relative term, cap and dropout, each there or not at run time,
// since all their combinations would be too many to compile. HAS_MASK: there is a mask.
// A thread has VECTOR neighbouring keys of a row at a time; what it sees of them is a bit each.
#pragma once
#include "attention/tile_products.cuh"
#include "runtime/cuda/philox.cuh"

__device__ __forceinline__ float minus_infinity(float) { return __int_as_float((int)0xff800000u); }
__device__ __forceinline__ double minus_infinity(double) { return (double)__int_as_float((int)0xff800000u); }
__device__ __forceinline__ float power_of_e(float x) { return TENSOR_CORES ? __expf(x) : expf(x); }
__device__ __forceinline__ double power_of_e(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ float tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double tangent(double x) { return tanh(x); }
__device__ __forceinline__ COMPUTED largest_of(COMPUTED a, COMPUTED b) { return a > b ? a : b; }

// Everything about one query of one head.
struct Query {
  int i;
  bool here;
  const bool* mask;
  const STORAGE* bias;
  const COMPUTED* term;
  unsigned long long element;  // of dropout: the number of its first score among all
};

struct Scores {
  const bool* mask;
  const STORAGE* bias;
  const COMPUTED* term;
  const long long* seed;
  INDEX mask_b, mask_h, mask_i, mask_j, bias_b, bias_h, bias_i, bias_j, term_b, term_h, term_i, term_row;
  COMPUTED scale, cap, kept;
  unsigned long long threshold;
  int H, L, S, count, shift, left, right, limit, wide;

  __device__ __forceinline__ void row_of_batch(const long long* lengths, int b, int from_end) {
    count = S;
    if (lengths != nullptr) {
      // They were checked before, but not while a CUDA graph is captured.
      const long long given = lengths[b];
      count = given < 0 ? 0 : given > S ? S : (int)given;
    }
    shift = from_end ? count - L : 0;
  }

  // Keys [low, high) that some query from first to last - 1 may see.
  __device__ __forceinline__ void keys_seen(int first, int last, int& low, int& high) const {
    low = 0;
    high = count;
    if (left >= 0) low = max(low, first + shift - left);
    if (right >= 0) high = min(high, last + shift + right);
  }

  // Queries [low, high) that may see some key from first to last - 1.
  __device__ __forceinline__ void queries_that_see(int first, int last, int& low, int& high) const {
    low = 0;
    high = first < last ? L : 0;
    if (right >= 0) low = max(low, first - shift - right);
    if (left >= 0) high = min(high, last - shift + left);
  }

  __device__ __forceinline__ Query query(int b, int h, int i, bool here) const {
    Query q;
    q.i = i;
    q.here = here;
    if (HAS_MASK) q.mask = mask + (b * mask_b + h * mask_h + i * mask_i);
    if (EXTRAS) {
      q.bias = bias + (b * bias_b + h * bias_h + i * bias_i);
      q.term = term + (b * term_b + h * term_h + i * term_i);
      q.element = (((unsigned long long)b * H + h) * L + i) * S;
    }
    return q;
  }

  __device__ __forceinline__ bool in_reach(int i, int j) const {
    const int at = i + shift;
    return j < count && (left < 0 || j >= at - left) && (right < 0 || j <= at + right);
  }

  // By position and mask, a bit for each of VECTOR keys from j on.
  __device__ __forceinline__ unsigned seen(const Query& q, int j) const {
    unsigned bits = 0;
    if (!q.here) return bits;
#pragma unroll
    for (int t = 0; t < VECTOR; ++t) bits |= (unsigned)in_reach(q.i, j + t) << t;
    if constexpr (HAS_MASK) {
      if (bits == 0) return bits;
      if (wide & 1) {
        const auto found = *reinterpret_cast<const Vector<unsigned char, VECTOR>*>(q.mask + j);
#pragma unroll
        for (int t = 0; t < VECTOR; ++t)
          if (!found.v[t]) bits &= ~(1u << t);
      } else {
#pragma unroll
        for (int t = 0; t < VECTOR; ++t)
          if (bits >> t & 1 && !q.mask[(j + t) * mask_j]) bits &= ~(1u << t);
      }
    }
    return bits;
  }

  // The same of one key, with what a bias of -inf hides.
  __device__ __forceinline__ bool sees(const Query& q, int j) const {
    if (!q.here || !in_reach(q.i, j)) return false;
    if (HAS_MASK && !q.mask[j * mask_j]) return false;
    return !EXTRAS || bias == nullptr || (COMPUTED)widen(q.bias[j * bias_j]) != minus_infinity(scale);
  }

  // Products of the query with VECTOR keys from j on become scores; `bits` loses the keys that a bias of -inf hides.
  __device__ __forceinline__ void scores(const Query& q, int j, COMPUTED (&y)[VECTOR], unsigned& bits) const {
#pragma unroll
    for (int t = 0; t < VECTOR; ++t) y[t] *= scale;
    if constexpr (EXTRAS) {
      if (bits == 0) return;
      if (bias != nullptr) {
        Vector<STORAGE, VECTOR> added;
        if (wide & 2) {
          added = *reinterpret_cast<const Vector<STORAGE, VECTOR>*>(q.bias + j);
        } else {
#pragma unroll
          for (int t = 0; t < VECTOR; ++t)
            added.v[t] = bits >> t & 1 ? q.bias[(j + t) * bias_j] : narrow<STORAGE>((COMPUTED)0);
        }
#pragma unroll
        for (int t = 0; t < VECTOR; ++t) {
          const COMPUTED x = widen(added.v[t]);
          if (x == minus_infinity(x)) bits &= ~(1u << t);
          y[t] += x;
        }
      }
      if (term != nullptr && limit >= 0) {
#pragma unroll
        for (int t = 0; t < VECTOR; ++t)
          if (bits >> t & 1) y[t] += q.term[(clipped(j + t - q.i - shift) + limit) * term_row];
      } else if (term != nullptr) {
        const COMPUTED slope = *q.term;
#pragma unroll
        for (int t = 0; t < VECTOR; ++t) y[t] -= slope * (COMPUTED)abs(j + t - q.i - shift);
      }
      if (cap > 0) {
#pragma unroll
        for (int t = 0; t < VECTOR; ++t) y[t] = cap * tangent(y[t] / cap);
      }
    }
  }

  __device__ __forceinline__ int clipped(int d) const { return d < -limit ? -limit : d > limit ? limit : d; }

  // Dropout's factors of VECTOR weights from key j on: kept or 0, see kernels/random.py.
  __device__ __forceinline__ void factors(const Query& q, int j, COMPUTED (&f)[VECTOR]) const {
    const unsigned long long element = q.element + j;
    const int phase = (int)(element & 3u);
    // One copy of the generator in the code, though the numbers may lie in two of its blocks.
#pragma unroll 1
    for (int first = -phase; first < VECTOR; first += 4) {
      unsigned words[4];
      philox_block((unsigned long long)*seed, (element + first) >> 2, 0, words);
#pragma unroll
      for (int t = 0; t < VECTOR; ++t) {
        const bool own = t >= first && t < first + 4;
        if (own) f[t] = (unsigned long long)philox_word(words, t - first) >= threshold ? kept : (COMPUTED)0;
      }
    }
  }
};

// What the threads of a block do on the rows of a tile: 8 neighbours share a row, VECTOR keys each and step.
constexpr int OF_ROW = 8, ROWS_AT_A_TIME = THREADS / OF_ROW;
constexpr int ROUNDS = (BLOCK_M + ROWS_AT_A_TIME - 1) / ROWS_AT_A_TIME, STEPS = BLOCK_N / (OF_ROW * VECTOR);
static_assert(STEPS * OF_ROW * VECTOR == BLOCK_N && STEPS * VECTOR <= 32, "8 threads have a row, a bit for each key");

__device__ __forceinline__ int row_of_round(int round) { return round * ROWS_AT_A_TIME + threadIdx.x / OF_ROW; }
// A whole warp is in or out.
__device__ __forceinline__ bool row_exists(int row) { return BLOCK_M % ROWS_AT_A_TIME == 0 || row < BLOCK_M; }
__device__ __forceinline__ int key_of_step(int step) { return (step * OF_ROW + threadIdx.x % OF_ROW) * VECTOR; }

__device__ __forceinline__ COMPUTED largest_in_row(COMPUTED x) {
#pragma unroll
  for (int apart = 4; apart >= 1; apart /= 2) x = largest_of(x, __shfl_xor_sync(0xffffffffu, x, apart));
  return x;
}
__device__ __forceinline__ COMPUTED sum_of_row(COMPUTED x) {
#pragma unroll
  for (int apart = 4; apart >= 1; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
  return x;
}

// A bit for each key that the thread's rows see by position and mask; returns whether there is any.
template <class QueryAt>
__device__ __forceinline__ unsigned seen_of_rows(
    const Scores& s, int start, unsigned (&seen)[ROUNDS], QueryAt query_at) {
  unsigned any = 0;
#pragma unroll
  for (int n = 0; n < ROUNDS; ++n) {
    seen[n] = 0;
    const int row = row_of_round(n);
    if (!row_exists(row)) continue;
    const Query q = query_at(row);
#pragma unroll
    for (int k = 0; k < STEPS; ++k) seen[n] |= s.seen(q, start + key_of_step(k)) << (k * VECTOR);
    any |= seen[n];
  }
  return any;
}

// VECTOR scores, or products that become scores.
__device__ __forceinline__ Numbers load_scores(const ScoreTile& tile, int row, int key) {
  return *reinterpret_cast<const Numbers*>(tile(row, key));
}
// Numbers of a row of scores back into its place as STORAGE, of which products read. Before tensor cores' narrower ones are
// stored, all threads of the row must have read theirs (__syncwarp).
__device__ __forceinline__ void store_weights(const WeightTile& tile, int row, int key, const COMPUTED (&x)[VECTOR]) {
  store_vector(tile(row, key), x);
}
