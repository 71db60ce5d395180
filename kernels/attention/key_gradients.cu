// Attention's gradients of keys and values: a block has some keys of a head of keys and goes over the queries that see
// them, of every head of the group in turn. Constants and names as in attention_forward.cu; equations in reference.py.
#include "attention/gradients.cuh"
#include "attention/tile_rows.cuh"

// grad, query, key, value, mask, bias, lengths, term, seed, lse, delta as in query_gradient.cu.
// grad_key (B, H / GROUP, S, E), grad_value (B, H / GROUP, S, EV), contiguous. All are the caller's.
// Blocks: blocks of keys of each head of keys.
extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) key_gradients(
    const STORAGE* grad, const STORAGE* query, const STORAGE* key, const STORAGE* value, const bool* mask,
    const STORAGE* bias, const long long* lengths, const COMPUTED* term, const long long* seed, const COMPUTED* lse,
    const COMPUTED* delta, STORAGE* grad_key, STORAGE* grad_value, int B, int H, int GROUP, int L, int S, int E, int EV,
    INDEX g_b, INDEX g_h, INDEX g_i, INDEX g_e, INDEX q_b, INDEX q_h, INDEX q_i, INDEX q_e, INDEX k_b, INDEX k_h,
    INDEX k_j, INDEX k_e, INDEX v_b, INDEX v_h, INDEX v_j, INDEX v_e, INDEX mask_b, INDEX mask_h, INDEX mask_i,
    INDEX mask_j, INDEX bias_b, INDEX bias_h, INDEX bias_i, INDEX bias_j, INDEX term_b, INDEX term_h, INDEX term_i,
    INDEX term_row, COMPUTED scale, COMPUTED cap, int left, int right, int from_end, int limit, int wide,
    long long threshold, COMPUTED kept) {
  extern __shared__ __align__(128) unsigned char shared[];
  STORAGE* const queries = reinterpret_cast<STORAGE*>(shared + AT_QUERY);
  STORAGE* const incoming = reinterpret_cast<STORAGE*>(shared + AT_GRAD);
  STORAGE* const keys = reinterpret_cast<STORAGE*>(shared + AT_KEY);
  STORAGE* const values = reinterpret_cast<STORAGE*>(shared + AT_VALUE);
  COMPUTED* const tile = reinterpret_cast<COMPUTED*>(shared + AT_SCORES);
  COMPUTED* const changes = reinterpret_cast<COMPUTED*>(shared + AT_CHANGES);
  const STORAGE* const weights = reinterpret_cast<const STORAGE*>(tile);
  const STORAGE* const gradients = reinterpret_cast<const STORAGE*>(changes);
  int* const flags = reinterpret_cast<int*>(shared + AT_FLAGS);
  STORAGE* const odd_row = reinterpret_cast<STORAGE*>(shared + AT_ODD_ROW);
  int* const odd_queries = reinterpret_cast<int*>(shared + AT_ODD);
  int* const odd_incoming = odd_queries + 1;

  const int blocks = (S + BLOCK_N - 1) / BLOCK_N, heads = H / GROUP;
  const int first = (int)(blockIdx.x % blocks) * BLOCK_N;
  const int number = blockIdx.x / blocks, b = number / heads, kv = number % heads;
  Scores s{mask, bias, term, seed, mask_b, mask_h, mask_i, mask_j, bias_b, bias_h, bias_i, bias_j, term_b, term_h,
           term_i, term_row, scale, cap, kept, (unsigned long long)threshold, H, L, S, 0, 0, left, right, limit, wide};
  s.row_of_batch(lengths, b, from_end);
  int low, high;
  s.queries_that_see(first, min(first + BLOCK_N, s.count), low, high);
  low = low / BLOCK_M * BLOCK_M;
  if (threadIdx.x == 0) *odd_queries = *odd_incoming = -1;
  load_rows<BLOCK_N, WIDTH_E, PITCH_E>(keys, E, k_e, Rows{key + (b * k_b + kv * k_h), k_j, first, s.count});
  load_rows<BLOCK_N, WIDTH_V, PITCH_V>(values, EV, v_e, Rows{value + (b * v_b + kv * v_h), v_j, first, s.count});
  PlacesOfSums places;
  places.find(tile);
  Product<BLOCK_N, WIDTH_E, false, false> key_sums;
  Product<BLOCK_N, WIDTH_V, false, false> value_sums;
  key_sums.clear();
  value_sums.clear();

  // One loop over all tiles of all heads of the group.
  const int steps = high > low ? (high - low + BLOCK_M - 1) / BLOCK_M : 0;
  for (int step = 0; step < steps * GROUP; ++step) {
    const int h = kv * GROUP + step / steps, start = low + step % steps * BLOCK_M;
    const auto query_at = [&](int row) { return s.query(b, h, start + row, start + row < L); };
    unsigned seen[ROUNDS];
    const unsigned any = seen_of_rows(s, first, seen, query_at);
    if (HAS_MASK) {
      if (!__syncthreads_or((int)any)) continue;
    } else {
      __syncthreads();
    }
    const Rows query_row{query + (b * q_b + h * q_h), q_i, start, L};
    const Rows incoming_row{grad + (b * g_b + h * g_h), g_i, start, L};
    const bool odd = load_rows<BLOCK_M, WIDTH_E, PITCH_E>(queries, E, q_e, query_row);
    const bool odd_too = load_rows<BLOCK_M, WIDTH_V, PITCH_V>(incoming, EV, g_e, incoming_row);
    if (HIDES && odd) atomicExch(odd_queries, step);
    if (HIDES && odd_too) atomicExch(odd_incoming, step);
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
    gradients_of_scores<true>(
        s, tile, changes, lse, delta, first, seen, query_at,
        [&](int row) { return ((INDEX)b * H + h) * L + start + row; },
        [](int, int, const Query&, int, unsigned, const COMPUTED(&)[VECTOR]) {});
    const bool clean_queries = HIDES && *odd_queries == step, clean_incoming = HIDES && *odd_incoming == step;
    if (clean_queries) clean<BLOCK_M, WIDTH_E, PITCH_E>(queries);
    if (clean_incoming) clean<BLOCK_M, WIDTH_V, PITCH_V>(incoming);
    __syncthreads();
    value_sums.template multiply<BLOCK_M>(weights, PITCH_WEIGHTS, incoming, PITCH_V);
    key_sums.template multiply<BLOCK_M>(gradients, PITCH_WEIGHTS, queries, PITCH_E);
    const auto sees = [&](int m, int k) { return s.sees(query_at(k), first + m); };
    if (clean_incoming) {
      add_not_finite<BLOCK_N, BLOCK_M>(
          value_sums, places, flags, odd_row, EV, g_e, incoming_row, sees,
          [&](int m, int k) { return (COMPUTED)widen(weights[k * PITCH_WEIGHTS + m]); });
    }
    if (clean_queries) {
      add_not_finite<BLOCK_N, BLOCK_M>(
          key_sums, places, flags, odd_row, E, q_e, query_row, sees,
          [&](int m, int k) { return (COMPUTED)widen(gradients[k * PITCH_WEIGHTS + m]); });
    }
  }

  const INDEX row = ((INDEX)b * heads + kv) * S + first;
  __syncthreads();
  write_rows<BLOCK_N, WIDTH_E, PITCH_OUT>(
      key_sums, places, reinterpret_cast<STORAGE*>(shared), E,
      [&](int r) { return first + r < S ? grad_key + (row + r) * E : nullptr; },
      [&](int, COMPUTED x) { return x * scale; });
  __syncthreads();
  write_rows<BLOCK_N, WIDTH_V, PITCH_OUT>(
      value_sums, places, reinterpret_cast<STORAGE*>(shared), EV,
      [&](int r) { return first + r < S ? grad_value + (row + r) * EV : nullptr; },
      [&](int, COMPUTED x) { return x; });
}
