// Attention's forward pass: the softmax is taken while tiles of keys stream by (Dao, FlashAttention-2, 2023).
//
// Constants (-D): STORAGE, COMPUTED, RESULT, INDEX types; BLOCK_M x BLOCK_N the tile of scores; WIDTH_E, WIDTH_V what a
// tile holds of E and EV; WIDE: that is less than E or EV; WARPS; BLOCKS of a multiprocessor; ALIGNED: loads of 128 bits;
// HIDES: some query may be kept from a key that another sees; HAS_MASK; EXTRAS: see scores.cuh; AT_*: bytes into shared
// memory; PITCH_*: elements of a row there.
#include "attention/scores.cuh"
#include "attention/tile_rows.cuh"

// query (B, H, L, E), key (B, H / GROUP, S, E), value (B, H / GROUP, S, EV), strides of theirs. mask, bias broadcast to
// (B, H, L, S) by strides of 0, or are null, as term (see scores.cuh) and seed (one number) may be. lengths (B,) or
// null. out (splits, B, H, L, EV) contiguous; lse (splits, B, H, L) contiguous, or null. All are the caller's.
// packed: a tile has the queries of all heads that share keys. wide: 1, the mask's rows take vectors; 2, the bias's do.
// Blocks: parts of the columns of out (WIDE), each of which makes the scores anew, of blocks of queries, the last ones
// first, of each split of the keys (`chunk` of them) of each head.
extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) attention_forward(
    const STORAGE* query, const STORAGE* key, const STORAGE* value, const bool* mask, const STORAGE* bias,
    const long long* lengths, const COMPUTED* term, const long long* seed, RESULT* out, COMPUTED* lse, int B, int H,
    int GROUP, int L, int S, int E, int EV, int chunk, int splits, int packed, INDEX q_b, INDEX q_h, INDEX q_i,
    INDEX q_e, INDEX k_b, INDEX k_h, INDEX k_j, INDEX k_e, INDEX v_b, INDEX v_h, INDEX v_j, INDEX v_e, INDEX mask_b,
    INDEX mask_h, INDEX mask_i, INDEX mask_j, INDEX bias_b, INDEX bias_h, INDEX bias_i, INDEX bias_j, INDEX term_b,
    INDEX term_h, INDEX term_i, INDEX term_row, COMPUTED scale, COMPUTED cap, int left, int right, int from_end,
    int limit, int wide, long long threshold, COMPUTED kept) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Padded<PITCH_E> queries{reinterpret_cast<STORAGE*>(shared + AT_QUERY)};
  const Padded<PITCH_E> keys{reinterpret_cast<STORAGE*>(shared + AT_KEY)};
  const Padded<PITCH_V> values{reinterpret_cast<STORAGE*>(shared + AT_VALUE)};
  const ScoreTile tile{reinterpret_cast<COMPUTED*>(shared + AT_SCORES)};
  const WeightTile weights{reinterpret_cast<STORAGE*>(shared + AT_SCORES)};
  COMPUTED* const factors = reinterpret_cast<COMPUTED*>(shared + AT_FACTORS);
  int* const flags = reinterpret_cast<int*>(shared + AT_FLAGS);
  STORAGE* const odd_row = reinterpret_cast<STORAGE*>(shared + AT_ODD_ROW);
  int* const odd_tile = reinterpret_cast<int*>(shared + AT_ODD);

  // Heads of queries, or packed: heads of keys with all queries of theirs.
  const int of_head = packed ? GROUP * L : L, heads = packed ? H / GROUP : H;
  const int blocks = (of_head + BLOCK_M - 1) / BLOCK_M;
  const int parts = WIDE ? (EV + WIDTH_V - 1) / WIDTH_V : 1;
  int program = blockIdx.x / parts;
  const Columns own = Columns::of_part<WIDTH_V>(blockIdx.x % parts, EV);
  const int first = (blocks - 1 - program % blocks) * BLOCK_M;
  program /= blocks;
  const int split = program % splits;
  program /= splits;
  const int b = program / heads, head = program % heads, kv = packed ? head : head / GROUP;
  const auto head_of = [&](int row) { return packed ? head * GROUP + (first + row) / L : head; };
  const auto query_of = [&](int row) { return packed ? (first + row) % L : first + row; };
  const auto is_here = [&](int row) { return first + row < of_head; };

  Scores s{mask, bias, term, seed, mask_b, mask_h, mask_i, mask_j, bias_b, bias_h, bias_i, bias_j, term_b, term_h,
           term_i, term_row, scale, cap, kept, (unsigned long long)threshold, H, L, S, 0, 0, left, right, limit, wide};
  s.row_of_batch(lengths, b, from_end);
  const auto query_at = [&](int row) { return s.query(b, head_of(row), query_of(row), is_here(row)); };
  int low, high;
  if (packed) s.keys_seen(0, L, low, high);
  else s.keys_seen(first, min(first + BLOCK_M, L), low, high);
  low = max(low, split * chunk) / BLOCK_N * BLOCK_N;
  high = (int)min((long long)high, (split + 1LL) * chunk);

  const STORAGE* const key_rows = key + (b * k_b + kv * k_h);
  const STORAGE* const value_rows = value + (b * v_b + kv * v_h);
  if (threadIdx.x == 0) *odd_tile = -1;
  const auto query_row = [&](int r) {
    return is_here(r) ? query + (b * q_b + head_of(r) * q_h + query_of(r) * q_i) : nullptr;
  };
  if (!WIDE) load_rows<BLOCK_M, WIDTH_E>(queries, Columns{0, E}, q_e, query_row);
  Product<BLOCK_M, WIDTH_V, true, false> sums;
  sums.clear();
  COMPUTED largest[ROUNDS], total[ROUNDS];
#pragma unroll
  for (int n = 0; n < ROUNDS; ++n) {
    largest[n] = minus_infinity(scale);
    total[n] = 0;
  }

  for (int start = low; start < high; start += BLOCK_N) {
    unsigned seen[ROUNDS];
    const unsigned any = seen_of_rows(s, start, seen, query_at);
    // Also the barrier behind the last tile's use of shared memory.
    if (HAS_MASK) {
      if (!__syncthreads_or((int)any)) continue;
    } else {
      __syncthreads();
    }
    const Rows key_row{key_rows, k_j, start, s.count}, value_row{value_rows, v_j, start, s.count};
    if (!WIDE) load_rows<BLOCK_N, WIDTH_E>(keys, Columns{0, E}, k_e, key_row);
    const bool odd = load_rows<BLOCK_N, WIDTH_V>(values, own, v_e, value_row);
    if (HIDES && odd) atomicExch(odd_tile, start);
    {
      Product<BLOCK_M, BLOCK_N, true, true> products;
      if constexpr (WIDE) {
        multiply_all_columns<BLOCK_M, BLOCK_N, WIDTH_E>(products, queries, q_e, query_row, keys, k_e, key_row, E);
      } else {
        __syncthreads();
        products.clear();
        products.template multiply<WIDTH_E>(queries, keys);
      }
      products.store(tile);
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < ROUNDS; ++n) {
      const int row = row_of_round(n);
      if (!row_exists(row)) continue;
      const Query q = query_at(row);
      COMPUTED y[STEPS][VECTOR];
      COMPUTED found = minus_infinity(scale);
#pragma unroll
      for (int k = 0; k < STEPS; ++k) {
        const Numbers product = load_scores(tile, row, key_of_step(k));
#pragma unroll
        for (int t = 0; t < VECTOR; ++t) y[k][t] = product.v[t];
        unsigned bits = seen[n] >> (k * VECTOR) & ((1u << VECTOR) - 1);
        s.scores(q, start + key_of_step(k), y[k], bits);
        if (EXTRAS) seen[n] &= ~(((1u << VECTOR) - 1) << (k * VECTOR)) | bits << (k * VECTOR);
#pragma unroll
        for (int t = 0; t < VECTOR; ++t)
          if (bits >> t & 1) found = largest_of(y[k][t], found);
      }
      found = largest_of(largest_in_row(found), largest[n]);
      // With nothing above -inf so far there is no difference to it.
      const COMPUTED level = found == minus_infinity(scale) ? (COMPUTED)0 : found;
      COMPUTED sum = 0;
#pragma unroll
      for (int k = 0; k < STEPS; ++k) {
#pragma unroll
        for (int t = 0; t < VECTOR; ++t) {
          y[k][t] = seen[n] >> (k * VECTOR + t) & 1 ? power_of_e(y[k][t] - level) : (COMPUTED)0;
          sum += y[k][t];
        }
      }
      const COMPUTED rescale = power_of_e(largest[n] - level);
      total[n] = total[n] * rescale + sum_of_row(sum);
      largest[n] = found;
      if (TENSOR_CORES) __syncwarp();
#pragma unroll
      for (int k = 0; k < STEPS; ++k) {
        if constexpr (EXTRAS) {
          if (threshold > 0 && seen[n] >> (k * VECTOR) & ((1u << VECTOR) - 1)) {
            COMPUTED f[VECTOR];
            s.factors(q, start + key_of_step(k), f);
#pragma unroll
            for (int t = 0; t < VECTOR; ++t) y[k][t] *= f[t];
          }
        }
        store_weights(weights, row, key_of_step(k), y[k]);
      }
      if (threadIdx.x % OF_ROW == 0) factors[row] = rescale;
    }
    const bool odd_values = HIDES && *odd_tile == start;
    if (odd_values) clean<BLOCK_N, WIDTH_V>(values);
    __syncthreads();
    sums.scale_rows(factors);
    sums.template multiply<BLOCK_N>(weights, values);
    if (odd_values) {
      add_not_finite<BLOCK_M, BLOCK_N>(
          sums, flags, odd_row, own, v_e, value_row,
          [&](int m, int k) { return s.sees(query_at(m), start + k); },
          [&](int m, int k) { return (COMPUTED)widen(*weights(m, k)); });
    }
  }

  __syncthreads();
#pragma unroll
  for (int n = 0; n < ROUNDS; ++n) {
    const int row = row_of_round(n);
    if (!row_exists(row) || threadIdx.x % OF_ROW != 0) continue;
    // A query that sees nothing: output 0, log-sum-exp -inf.
    const bool none = total[n] == 0;
    factors[row] = none ? (COMPUTED)0 : 1 / total[n];
    if (lse != nullptr && own.first == 0 && is_here(row)) {
      const INDEX place = (((INDEX)split * B + b) * H + head_of(row)) * L + query_of(row);
      lse[place] = none ? minus_infinity(scale) : largest[n] + logarithm(total[n]);
    }
  }
  __syncthreads();
  write_rows<BLOCK_M, WIDTH_V, PITCH_OUT>(
      sums, reinterpret_cast<RESULT*>(shared), own,
      [&](int r) {
        return is_here(r) ? out + ((((INDEX)split * B + b) * H + head_of(r)) * L + query_of(r)) * EV : nullptr;
      },
      [&](int m, COMPUTED x) { return x * factors[m]; });
}
