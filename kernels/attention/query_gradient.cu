// Attention's gradients of queries, of the relative term's numbers, and of a bias as large as the scores. The weights
// are made again from the log-sum-exp; a block has some queries and goes over the keys that they see. Constants and
// names as in attention_forward.cu; equations in reference.py.
#include "attention/gradients.cuh"

// grad (B, H, L, EV), query (B, H, L, E), key (B, H / GROUP, S, E), value (B, H / GROUP, S, EV), mask, bias, lengths,
// term, seed as in attention_forward.cu. lse, delta (B, H, L) contiguous. table (2 limit + 1, E), of Shaw's term, or
// null.
// grad_query (B, H, L, E) contiguous, of type RESULT. grad_term (parts, B, H, L, 2 limit + 1), zeros before, of ALiBi's
// slopes (parts, B, H, L), or null: the same numbers in every part. grad_bias (B, H, L, S), zeros before, or null. All are
// the caller's.
// wide: as there, and 4: grad_bias's rows take vectors.
// Blocks: parts of the columns of grad_query (WIDE) of blocks of queries of each head, the last ones first.
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
  const Tiles tiles(shared);

  const int blocks = (L + BLOCK_M - 1) / BLOCK_M;
  const int parts = WIDE ? (E + WIDTH_E - 1) / WIDTH_E : 1, part = blockIdx.x % parts, program = blockIdx.x / parts;
  const Columns own = Columns::of_part<WIDTH_E>(part, E);
  const int first = (blocks - 1 - program % blocks) * BLOCK_M;
  const int number = program / blocks, b = number / H, h = number % H, kv = h / GROUP;
  Scores s{mask, bias, term, seed, mask_b, mask_h, mask_i, mask_j, bias_b, bias_h, bias_i, bias_j, term_b, term_h,
           term_i, term_row, scale, cap, kept, (unsigned long long)threshold, H, L, S, 0, 0, left, right, limit, wide};
  s.row_of_batch(lengths, b, from_end);
  int low, high;
  s.keys_seen(first, min(first + BLOCK_M, L), low, high);
  low = max(low, 0) / BLOCK_N * BLOCK_N;
  const auto query_at = [&](int row) { return s.query(b, h, first + row, first + row < L); };
  if (grad_term != nullptr) grad_term += (INDEX)part * B * H * L * max(2 * limit + 1, 1);
  const auto number_of = [&](int row) { return (INDEX)number * L + first + row; };
  const STORAGE* const key_rows = key + (b * k_b + kv * k_h);
  const STORAGE* const value_rows = value + (b * v_b + kv * v_h);
  if (threadIdx.x == 0) *tiles.odd = -1;
  const Source queries{{query + (b * q_b + h * q_h), q_i, first, L}, q_e};
  const Source incoming{{grad + (b * g_b + h * g_h), g_i, first, L}, g_e};
  if (!WIDE) {
    load_source<BLOCK_M, WIDTH_E>(tiles.queries, queries, own);
    load_source<BLOCK_M, WIDTH_V>(tiles.incoming, incoming, Columns{0, EV});
  }
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
    const Source keys{{key_rows, k_j, start, s.count}, k_e}, values{{value_rows, v_j, start, s.count}, v_e};
    bool odd = false;
    if (!WIDE) {
      odd = load_source<BLOCK_N, WIDTH_E>(tiles.keys, keys, own);
      load_source<BLOCK_N, WIDTH_V>(tiles.values, values, Columns{0, EV});
      __syncthreads();
    }
    products_of_tile(tiles, queries, keys, E, incoming, values, EV);
    if (WIDE) odd = load_source<BLOCK_N, WIDTH_E>(tiles.keys, keys, own);
    if (HIDES && odd) atomicExch(tiles.odd, start);
    __syncthreads();
    gradients_of_scores<false>(
        s, tiles, lse, delta, start, seen, query_at, number_of,
        [&](int n, int, const Query& q, int j, unsigned bits, const COMPUTED(&dx)[VECTOR]) {
          if constexpr (EXTRAS) {
            if (grad_term != nullptr && limit >= 0) {
              COMPUTED* const to = grad_term + ((INDEX)number * L + q.i) * (2 * limit + 1) + limit;
#pragma unroll
              for (int t = 0; t < VECTOR; ++t) {
                const int d = j + t - q.i - s.shift;
                if (d <= -limit) behind[n] += dx[t];
                else if (d >= limit) ahead[n] += dx[t];
                // Between the clips a distance has one key of each query.
                else if (bits >> t & 1) to[d] = dx[t];
              }
            } else if (grad_term != nullptr) {
#pragma unroll
              for (int t = 0; t < VECTOR; ++t) behind[n] += dx[t] * (COMPUTED)abs(j + t - q.i - s.shift);
            }
            if (grad_bias != nullptr && part == 0 && bits != 0) {
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
    const bool odd_keys = HIDES && *tiles.odd == start;
    if (odd_keys) clean<BLOCK_N, WIDTH_E>(tiles.keys);
    __syncthreads();
    sums.template multiply<BLOCK_N>(tiles.weights, tiles.keys);
    if (odd_keys) {
      add_not_finite<BLOCK_M, BLOCK_N>(
          sums, tiles.flags, tiles.odd_row, own, k_e, keys.rows,
          [&](int m, int k) { return s.sees(query_at(m), start + k); },
          [&](int m, int k) { return (COMPUTED)widen(*tiles.weights(m, k)); });
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
        COMPUTED* const to = grad_term + number_of(row) * (2 * limit + 1);
        to[0] = limit == 0 ? before + after : before;
        if (limit > 0) to[2 * limit] = after;
      }
    }
  }
  if (EXTRAS && table != nullptr) {
    // The table is as more keys, whose weights are the gradients of its numbers: this block's own rows of grad_term.
    const int rows = 2 * limit + 1;
    for (int from = 0; from < rows; from += BLOCK_N) {
      __syncthreads();
      for (int place = threadIdx.x; place < BLOCK_M * BLOCK_N; place += THREADS) {
        const int r = place / BLOCK_N, c = place % BLOCK_N;
        const bool here = first + r < L && from + c < rows;
        *tiles.weights(r, c) = narrow<STORAGE>(here ? grad_term[number_of(r) * rows + from + c] : (COMPUTED)0);
      }
      load_rows<BLOCK_N, WIDTH_E>(tiles.keys, own, t_e, Rows{table, t_row, from, rows});
      __syncthreads();
      sums.template multiply<BLOCK_N>(tiles.weights, tiles.keys);
    }
  }
  __syncthreads();
  write_rows<BLOCK_M, WIDTH_E, PITCH_OUT>(
      sums, reinterpret_cast<RESULT*>(shared), own,
      [&](int r) { return first + r < L ? grad_query + number_of(r) * E : nullptr; },
      [&](int, COMPUTED x) { return x * scale; });
}
