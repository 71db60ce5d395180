// Attention's gradient of a bias that broadcasts, summed to the bias's own shape. Constants and names as in
// attention_forward.cu; equations in reference.py.
#include "attention/gradients.cuh"

// grad, query, key, value, mask, bias, lengths, term, seed, lse, delta as in query_gradient.cu.
// parts (chunks, of_b, of_h, of_i, of_j) contiguous, the caller's: each chunk of the tiles of scores that a tile of the
// bias is added to, summed in turn; where the bias has one place for all, all are summed.
// Blocks: tiles of the bias in each chunk.
extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) bias_gradient(
    const STORAGE* grad, const STORAGE* query, const STORAGE* key, const STORAGE* value, const bool* mask,
    const STORAGE* bias, const long long* lengths, const COMPUTED* term, const long long* seed, const COMPUTED* lse,
    const COMPUTED* delta, COMPUTED* parts, int B, int H, int GROUP, int L, int S, int E, int EV, int of_b, int of_h,
    int of_i, int of_j, int chunks, INDEX g_b, INDEX g_h, INDEX g_i, INDEX g_e, INDEX q_b, INDEX q_h, INDEX q_i,
    INDEX q_e, INDEX k_b, INDEX k_h, INDEX k_j, INDEX k_e, INDEX v_b, INDEX v_h, INDEX v_j, INDEX v_e, INDEX mask_b,
    INDEX mask_h, INDEX mask_i, INDEX mask_j, INDEX bias_b, INDEX bias_h, INDEX bias_i, INDEX bias_j, INDEX term_b,
    INDEX term_h, INDEX term_i, INDEX term_row, COMPUTED scale, COMPUTED cap, int left, int right, int from_end,
    int limit, int wide, long long threshold, COMPUTED kept) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Tiles tiles(shared);
  const ScoreTile tile = tiles.scores;

  const int blocks_j = (of_j + BLOCK_N - 1) / BLOCK_N, blocks_i = (of_i + BLOCK_M - 1) / BLOCK_M;
  long long program = blockIdx.x;
  const int tile_j = (int)(program % blocks_j);
  program /= blocks_j;
  const int tile_i = (int)(program % blocks_i);
  program /= blocks_i;
  const int own_h = (int)(program % of_h);
  program /= of_h;
  const int own_b = (int)(program % of_b), chunk = (int)(program / of_b);
  const int times_j = of_j == 1 ? (S + BLOCK_N - 1) / BLOCK_N : 1;
  const int times_i = of_i == 1 ? (L + BLOCK_M - 1) / BLOCK_M : 1;
  const int times_h = of_h == 1 ? H : 1, times_b = of_b == 1 ? B : 1;
  const long long steps = (long long)times_b * times_h * times_i * times_j, of_chunk = (steps + chunks - 1) / chunks;
  Scores s{mask, bias, term, seed, mask_b, mask_h, mask_i, mask_j, bias_b, bias_h, bias_i, bias_j, term_b, term_h,
           term_i, term_row, scale, cap, kept, (unsigned long long)threshold, H, L, S, 0, 0, left, right, limit, wide};
  COMPUTED sums[ROUNDS][STEPS][VECTOR];
#pragma unroll
  for (int n = 0; n < ROUNDS; ++n)
#pragma unroll
    for (int k = 0; k < STEPS; ++k)
#pragma unroll
      for (int t = 0; t < VECTOR; ++t) sums[n][k][t] = 0;

  for (long long step = chunk * of_chunk; step < min((chunk + 1) * of_chunk, steps); ++step) {
    const int start = (tile_j + (int)(step % times_j)) * BLOCK_N;
    const int first = (tile_i + (int)(step / times_j % times_i)) * BLOCK_M;
    const int h = own_h + (int)(step / times_j / times_i % times_h);
    const int b = own_b + (int)(step / times_j / times_i / times_h), kv = h / GROUP;
    s.row_of_batch(lengths, b, from_end);
    int low, high;
    s.keys_seen(first, min(first + BLOCK_M, L), low, high);
    if (start >= high || start + BLOCK_N <= low) continue;
    const auto query_at = [&](int row) { return s.query(b, h, first + row, first + row < L); };
    unsigned seen[ROUNDS];
    const unsigned any = seen_of_rows(s, start, seen, query_at);
    if (HAS_MASK) {
      if (!__syncthreads_or((int)any)) continue;
    } else {
      __syncthreads();
    }
    const Source queries{{query + (b * q_b + h * q_h), q_i, first, L}, q_e};
    const Source incoming{{grad + (b * g_b + h * g_h), g_i, first, L}, g_e};
    const Source keys{{key + (b * k_b + kv * k_h), k_j, start, s.count}, k_e};
    const Source values{{value + (b * v_b + kv * v_h), v_j, start, s.count}, v_e};
    if (!WIDE) {
      load_source<BLOCK_M, WIDTH_E>(tiles.queries, queries, Columns{0, E});
      load_source<BLOCK_M, WIDTH_V>(tiles.incoming, incoming, Columns{0, EV});
      load_source<BLOCK_N, WIDTH_E>(tiles.keys, keys, Columns{0, E});
      load_source<BLOCK_N, WIDTH_V>(tiles.values, values, Columns{0, EV});
      __syncthreads();
    }
    products_of_tile(tiles, queries, keys, E, incoming, values, EV);
    __syncthreads();
    gradients_of_scores<false>(
        s, tiles, lse, delta, start, seen, query_at,
        [&](int row) { return ((INDEX)b * H + h) * L + first + row; },
        [&](int n, int k, const Query&, int, unsigned, const COMPUTED(&dx)[VECTOR]) {
#pragma unroll
          for (int t = 0; t < VECTOR; ++t) sums[n][k][t] += dx[t];
        });
  }

  __syncthreads();
#pragma unroll
  for (int n = 0; n < ROUNDS; ++n)
    if (row_exists(row_of_round(n)))
#pragma unroll
      for (int k = 0; k < STEPS; ++k)
#pragma unroll
        for (int t = 0; t < VECTOR; ++t) *tile(row_of_round(n), key_of_step(k) + t) = sums[n][k][t];
  __syncthreads();
  if (of_i == 1) {
    for (int j = threadIdx.x; j < BLOCK_N; j += THREADS) {
      COMPUTED sum = 0;
      for (int i = 0; i < BLOCK_M; ++i) sum += *tile(i, j);
      *tile(0, j) = sum;
    }
    __syncthreads();
  }
  if (of_j == 1) {
    for (int i = threadIdx.x; i < (of_i == 1 ? 1 : BLOCK_M); i += THREADS) {
      COMPUTED sum = 0;
      for (int j = 0; j < BLOCK_N; ++j) sum += *tile(i, j);
      *tile(i, 0) = sum;
    }
    __syncthreads();
  }
  COMPUTED* const own = parts + (((INDEX)chunk * of_b + own_b) * of_h + own_h) * of_i * of_j;
  for (int place = threadIdx.x; place < BLOCK_M * BLOCK_N; place += THREADS) {
    const int row = place / BLOCK_N, column = place % BLOCK_N;
    const int i = tile_i * BLOCK_M + row, j = tile_j * BLOCK_N + column;
    if (i < of_i && j < of_j) own[(INDEX)i * of_j + j] = *tile(row, column);
  }
}
