// Attention's gradients of queries, of the relative term's numbers, and of a bias as large as the scores. The weights
// are made again from the log-sum-exp; a block has some queries and goes over the keys that they see. Constants and
// names as in attention_forward.cu; equations in reference.py.
#include "attention/gradients.cuh"
#include "attention/tile_rows.cuh"

// grad (B, H, L, EV), query (B, H, L, E), key (B, H / GROUP, S, E), value (B, H / GROUP, S, EV), mask, bias, lengths,
// term, seed as in attention_forward.cu. lse, delta (B, H, L) contiguous. table (2 limit + 1, E), of Shaw's term, or
// null.
// grad_query (B, H, L, E) contiguous, of type RESULT. grad_term (B, H, L, 2 limit + 1), zeros before, of ALiBi's slopes
// (B, H, L), or null. grad_bias (B, H, L, S), zeros before, or null. All are the caller's.
// wide: as there, and 4: grad_bias's rows take vectors.
// Blocks: blocks of queries of each head, the last ones first.
extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) query_gradient(
    const STORAGE* grad, const STORAGE* query, const STORAGE* key, const STORAGE* value, const bool* mask,
    const STORAGE* bias, const long long* lengths, const COMPUTED* term, const long long* seed, const COMPUTED* lse,
    const COMPUTED* delta, const STORAGE* table, RESULT* grad_query, COMPUTED* grad_term, STORAGE* grad_bias, int B,
    int H, int GROUP, int L, int S, int E, int EV, INDEX t_row, INDEX t_e, INDEX g_b, INDEX g_h, INDEX g_i, INDEX g_e,
    INDEX q_b, INDEX q_h, INDEX q_i, INDEX q_e, INDEX k_b, INDEX k_h, INDEX k_j, INDEX k_e, INDEX v_b, INDEX v_h,
    INDEX v_j, INDEX v_e, INDEX mask_b, INDEX mask_h, INDEX mask_i, INDEX mask_j, INDEX bias_b, INDEX bias_h,
    INDEX bias_i, INDEX bias_j, INDEX term_b, INDEX term_h, INDEX term_i, INDEX term_row, COMPUTED scale, COMPUTED cap,
    int left, int right, int from_end, int limit, int wide, long long threshold, COMPUTED kept) {
  extern __shared__ __align__(128) unsigned char shared[];
  STORAGE* const queries = reinterpret_cast<STORAGE*>(shared + AT_QUERY);
  STORAGE* const incoming = reinterpret_cast<STORAGE*>(shared + AT_GRAD);
  STORAGE* const keys = reinterpret_cast<STORAGE*>(shared + AT_KEY);
  STORAGE* const values = reinterpret_cast<STORAGE*>(shared + AT_VALUE);
  COMPUTED* const tile = reinterpret_cast<COMPUTED*>(shared + AT_SCORES);
  COMPUTED* const changes = reinterpret_cast<COMPUTED*>(shared + AT_CHANGES);
  const STORAGE* const weights = reinterpret_cast<const STORAGE*>(tile);
  int* const flags = reinterpret_cast<int*>(shared + AT_FLAGS);
  STORAGE* const odd_row = reinterpret_cast<STORAGE*>(shared + AT_ODD_ROW);
  int* const odd_tile = reinterpret_cast<int*>(shared + AT_ODD);

  const int blocks = (L + BLOCK_M - 1) / BLOCK_M;
  const int first = (blocks - 1 - (int)(blockIdx.x % blocks)) * BLOCK_M;
  const int number = blockIdx.x / blocks, b = number / H, h = number % H, kv = h / GROUP;
  Scores s{mask, bias, term, seed, mask_b, mask_h, mask_i, mask_j, bias_b, bias_h, bias_i, bias_j, term_b, term_h,
           term_i, term_row, scale, cap, kept, (unsigned long long)threshold, H, L, S, 0, 0, left, right, limit, wide};
  s.row_of_batch(lengths, b, from_end);
  int low, high;
  s.keys_seen(first, min(first + BLOCK_M, L), low, high);
  low = max(low, 0) / BLOCK_N * BLOCK_N;
  const auto query_at = [&](int row) { return s.query(b, h, first + row, first + row < L); };
  const auto number_of = [&](int row) { return (INDEX)number * L + first + row; };
  const STORAGE* const key_rows = key + (b * k_b + kv * k_h);
  const STORAGE* const value_rows = value + (b * v_b + kv * v_h);
  if (threadIdx.x == 0) *odd_tile = -1;
  load_rows<BLOCK_M, WIDTH_E, PITCH_E>(queries, E, q_e, Rows{query + (b * q_b + h * q_h), q_i, first, L});
  load_rows<BLOCK_M, WIDTH_V, PITCH_V>(incoming, EV, g_e, Rows{grad + (b * g_b + h * g_h), g_i, first, L});
  PlacesOfSums places;
  places.find(tile);
  Product<BLOCK_M, WIDTH_E, true, false> sums;
  sums.clear();
  // What all keys at least `limit` behind and ahead get; of ALiBi's slopes the sum of gradients times distances.
  COMPUTED behind[ROUNDS], ahead[ROUNDS];
#pragma unroll
  for (int n = 0; n < ROUNDS; ++n) behind[n] = ahead[n] = 0;

  for (int start = low; start < high; start += BLOCK_N) {
    unsigned seen[ROUNDS];
    const unsigned any = seen_of_rows(s, start, seen, query_at);
    if (HAS_MASK) {
      if (!__syncthreads_or((int)any)) continue;
    } else {
      __syncthreads();
    }
    const Rows key_row{key_rows, k_j, start, s.count};
    const bool odd = load_rows<BLOCK_N, WIDTH_E, PITCH_E>(keys, E, k_e, key_row);
    load_rows<BLOCK_N, WIDTH_V, PITCH_V>(values, EV, v_e, Rows{value_rows, v_j, start, s.count});
    if (HIDES && odd) atomicExch(odd_tile, start);
    __syncthreads();
    {
      Product<BLOCK_M, BLOCK_N, true, true> products;
      products.clear();
      products.template multiply<WIDTH_E>(queries, PITCH_E, keys, PITCH_E);
      products.store(tile, PITCH_SCORES);
      products.clear();
      products.template multiply<WIDTH_V>(incoming, PITCH_V, values, PITCH_V);
      products.store(changes, PITCH_SCORES);
    }
    __syncthreads();
    gradients_of_scores<false>(
        s, tile, changes, lse, delta, start, seen, query_at, number_of,
        [&](int n, int, const Query& q, int j, unsigned bits, const COMPUTED(&dx)[VECTOR]) {
          if constexpr (EXTRAS) {
            if (grad_term != nullptr && limit >= 0) {
              COMPUTED* const own = grad_term + ((INDEX)number * L + q.i) * (2 * limit + 1) + limit;
#pragma unroll
              for (int t = 0; t < VECTOR; ++t) {
                const int d = j + t - q.i - s.shift;
                if (d <= -limit) behind[n] += dx[t];
                else if (d >= limit) ahead[n] += dx[t];
                // Between the clips a distance has one key of each query.
                else if (bits >> t & 1) own[d] = dx[t];
              }
            } else if (grad_term != nullptr) {
#pragma unroll
              for (int t = 0; t < VECTOR; ++t) behind[n] += dx[t] * (COMPUTED)abs(j + t - q.i - s.shift);
            }
            if (grad_bias != nullptr && bits != 0) {
              STORAGE* const to = grad_bias + (((INDEX)number * L + q.i) * S + j);
              Vector<STORAGE, VECTOR> stored;
#pragma unroll
              for (int t = 0; t < VECTOR; ++t) stored.v[t] = narrow<STORAGE>(dx[t]);
              if (wide & 4) {
                *reinterpret_cast<Vector<STORAGE, VECTOR>*>(to) = stored;
              } else {
#pragma unroll
                for (int t = 0; t < VECTOR; ++t)
                  if (bits >> t & 1) to[t] = stored.v[t];
              }
            }
          }
        });
    const bool odd_keys = HIDES && *odd_tile == start;
    if (odd_keys) clean<BLOCK_N, WIDTH_E, PITCH_E>(keys);
    __syncthreads();
    sums.template multiply<BLOCK_N>(weights, PITCH_WEIGHTS, keys, PITCH_E);
    if (odd_keys) {
      add_not_finite<BLOCK_M, BLOCK_N>(
          sums, places, flags, odd_row, E, k_e, key_row, [&](int m, int k) { return s.sees(query_at(m), start + k); },
          [&](int m, int k) { return (COMPUTED)widen(weights[m * PITCH_WEIGHTS + k]); });
    }
  }

  if (EXTRAS && grad_term != nullptr) {
#pragma unroll
    for (int n = 0; n < ROUNDS; ++n) {
      const int row = row_of_round(n);
      if (!row_exists(row)) continue;
      const COMPUTED before = sum_of_row(behind[n]), after = sum_of_row(ahead[n]);
      if (threadIdx.x % OF_ROW != 0 || first + row >= L) continue;
      if (limit < 0) {
        grad_term[number_of(row)] = before;
      } else {
        COMPUTED* const own = grad_term + number_of(row) * (2 * limit + 1);
        own[0] = limit == 0 ? before + after : before;
        if (limit > 0) own[2 * limit] = after;
      }
    }
  }
  if (EXTRAS && table != nullptr) {
    // The table is as more keys, whose weights are the gradients of its numbers: this block's own rows of grad_term.
    const int rows = 2 * limit + 1;
    STORAGE* const stored = reinterpret_cast<STORAGE*>(tile);
    for (int from = 0; from < rows; from += BLOCK_N) {
      __syncthreads();
      for (int place = threadIdx.x; place < BLOCK_M * BLOCK_N; place += THREADS) {
        const int r = place / BLOCK_N, c = place % BLOCK_N;
        const bool here = first + r < L && from + c < rows;
        stored[r * PITCH_WEIGHTS + c] = narrow<STORAGE>(here ? grad_term[number_of(r) * rows + from + c] : (COMPUTED)0);
      }
      load_rows<BLOCK_N, WIDTH_E, PITCH_E>(keys, E, t_e, Rows{table, t_row, from, rows});
      __syncthreads();
      sums.template multiply<BLOCK_N>(weights, PITCH_WEIGHTS, keys, PITCH_E);
    }
  }
  __syncthreads();
  write_rows<BLOCK_M, WIDTH_E, PITCH_OUT>(
      sums, places, reinterpret_cast<RESULT*>(shared), E,
      [&](int r) { return first + r < L ? grad_query + number_of(r) * E : nullptr; },
      [&](int, COMPUTED x) { return x * scale; });
}
