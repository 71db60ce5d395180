// Attention's gradients of keys and values: a block has some keys of a head of keys and goes over the queries that see
// them, of every head of the group in turn. Constants and names as in attention_forward.cu; equations in reference.py.
#include "attention/gradients.cuh"

// grad, query, key, value, mask, bias, lengths, term, seed, lse, delta as in query_gradient.cu.
// grad_key (B, H / GROUP, S, E), grad_value (B, H / GROUP, S, EV), contiguous. All are the caller's.
// Blocks: parts of the columns of both (WIDE) of blocks of keys of each head of keys.
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
  const Tiles tiles(shared);

  const int blocks = (S + BLOCK_N - 1) / BLOCK_N, heads = H / GROUP;
  const int parts = WIDE ? max((E + WIDTH_E - 1) / WIDTH_E, (EV + WIDTH_V - 1) / WIDTH_V) : 1;
  const int part = blockIdx.x % parts, program = blockIdx.x / parts;
  const Columns own_e = Columns::of_part<WIDTH_E>(part, E), own_v = Columns::of_part<WIDTH_V>(part, EV);
  const int first = program % blocks * BLOCK_N;
  const int number = program / blocks, b = number / heads, kv = number % heads;
  Scores s{mask, bias, term, seed, mask_b, mask_h, mask_i, mask_j, bias_b, bias_h, bias_i, bias_j, term_b, term_h,
           term_i, term_row, scale, cap, kept, (unsigned long long)threshold, H, L, S, 0, 0, left, right, limit, wide};
  s.row_of_batch(lengths, b, from_end);
  int low, high;
  s.queries_that_see(first, min(first + BLOCK_N, s.count), low, high);
  low = low / BLOCK_M * BLOCK_M;
  if (threadIdx.x == 0) tiles.odd[0] = tiles.odd[1] = -1;
  const Source keys{{key + (b * k_b + kv * k_h), k_j, first, s.count}, k_e};
  const Source values{{value + (b * v_b + kv * v_h), v_j, first, s.count}, v_e};
  if (!WIDE) {
    load_source<BLOCK_N, WIDTH_E>(tiles.keys, keys, own_e);
    load_source<BLOCK_N, WIDTH_V>(tiles.values, values, own_v);
  }
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
    const Source queries{{query + (b * q_b + h * q_h), q_i, start, L}, q_e};
    const Source incoming{{grad + (b * g_b + h * g_h), g_i, start, L}, g_e};
    const auto load_own = [&] {
      const bool odd = load_source<BLOCK_M, WIDTH_E>(tiles.queries, queries, own_e);
      const bool odd_too = load_source<BLOCK_M, WIDTH_V>(tiles.incoming, incoming, own_v);
      if (HIDES && odd) atomicExch(tiles.odd, step);
      if (HIDES && odd_too) atomicExch(tiles.odd + 1, step);
    };
    if (!WIDE) {
      load_own();
      __syncthreads();
    }
    products_of_tile(tiles, queries, keys, E, incoming, values, EV);
    if (WIDE) {
      __syncthreads();
      load_own();
    }
    __syncthreads();
    gradients_of_scores<true>(
        s, tiles, lse, delta, first, seen, query_at,
        [&](int row) { return ((INDEX)b * H + h) * L + start + row; },
        [](int, int, const Query&, int, unsigned, const COMPUTED(&)[VECTOR]) {});
    const bool clean_queries = HIDES && tiles.odd[0] == step, clean_incoming = HIDES && tiles.odd[1] == step;
    if (clean_queries) clean<BLOCK_M, WIDTH_E>(tiles.queries);
    if (clean_incoming) clean<BLOCK_M, WIDTH_V>(tiles.incoming);
    __syncthreads();
    value_sums.template multiply<BLOCK_M>(tiles.weights, tiles.incoming);
    key_sums.template multiply<BLOCK_M>(tiles.gradients, tiles.queries);
    const auto sees = [&](int m, int k) { return s.sees(query_at(k), first + m); };
    if (clean_incoming) {
      add_not_finite<BLOCK_N, BLOCK_M>(
          value_sums, tiles.flags, tiles.odd_row, own_v, g_e, incoming.rows, sees,
          [&](int m, int k) { return (COMPUTED)widen(*tiles.weights(k, m)); });
    }
    if (clean_queries) {
      add_not_finite<BLOCK_N, BLOCK_M>(
          key_sums, tiles.flags, tiles.odd_row, own_e, q_e, queries.rows, sees,
          [&](int m, int k) { return (COMPUTED)widen(*tiles.gradients(k, m)); });
    }
  }

  const INDEX row = ((INDEX)b * heads + kv) * S + first;
  __syncthreads();
  write_rows<BLOCK_N, WIDTH_E, PITCH_OUT>(
      key_sums, reinterpret_cast<STORAGE*>(shared), own_e,
      [&](int r) { return first + r < S ? grad_key + (row + r) * E : nullptr; },
      [&](int, COMPUTED x) { return x * scale; });
  __syncthreads();
  write_rows<BLOCK_N, WIDTH_V, PITCH_OUT>(
      value_sums, reinterpret_cast<STORAGE*>(shared), own_v,
      [&](int r) { return first + r < S ? grad_value + (row + r) * EV : nullptr; },
      [&](int, COMPUTED x) { return x; });
}
