// Shaw's relative term: the products of the queries with its table, and the gradient of the table. The queries' own
// gradient through it is made in query_gradient.cu.
//
// Constants: STORAGE, COMPUTED, INDEX types; BLOCK_M queries and BLOCK_N rows of the table at a time; WIDTH_E what a
// tile holds of E; WIDE: that is less than E; WARPS; ALIGNED: loads of 128 bits; AT_*, PITCH_* as in attention_forward.cu.
#define HIDES 0
#include "attention/tile_rows.cuh"

// term (B, H, L, rows) contiguous, the caller's, = scale * query (B, H, L, E) . table (rows, E), with strides of theirs.
// Blocks: tiles of rows of each block of queries of each head.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) shaw_products(
    const STORAGE* query, const STORAGE* table, COMPUTED* term, int H, int L, int E, int rows, INDEX q_b, INDEX q_h,
    INDEX q_i, INDEX q_e, INDEX t_row, INDEX t_e, COMPUTED scale) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Padded<PITCH_E> queries{reinterpret_cast<STORAGE*>(shared + AT_QUERY)};
  const Padded<PITCH_E> keys{reinterpret_cast<STORAGE*>(shared + AT_KEY)};
  const ScoreTile tile{reinterpret_cast<COMPUTED*>(shared + AT_SCORES)};
  const int blocks_c = (rows + BLOCK_N - 1) / BLOCK_N, blocks_i = (L + BLOCK_M - 1) / BLOCK_M;
  const int from = (int)(blockIdx.x % blocks_c) * BLOCK_N, first = (int)(blockIdx.x / blocks_c % blocks_i) * BLOCK_M;
  const int number = blockIdx.x / blocks_c / blocks_i, b = number / H, h = number % H;
  const Rows query_row{query + (b * q_b + h * q_h), q_i, first, L}, table_row{table, t_row, from, rows};
  Product<BLOCK_M, BLOCK_N, true, true> products;
  multiply_all_columns<BLOCK_M, BLOCK_N, WIDTH_E>(products, queries, q_e, query_row, keys, t_e, table_row, E);
  products.store(tile);
  __syncthreads();
  for (int place = threadIdx.x; place < BLOCK_M * BLOCK_N; place += THREADS) {
    const int r = place / BLOCK_N, c = place % BLOCK_N;
    if (first + r < L && from + c < rows)
      term[((INDEX)number * L + first + r) * rows + from + c] = scale * *tile(r, c);
  }
}

// parts (chunks, rows, E) contiguous, the caller's: the sums over a chunk of all queries of grad_term (B, H, L, rows), contiguous,
// times query (B, H, L, E). Blocks: parts of the columns (WIDE) of tiles of rows in each chunk.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) shaw_gradient(
    const STORAGE* query, const COMPUTED* grad_term, COMPUTED* parts, int B, int H, int L, int E, int rows, int chunk,
    INDEX q_b, INDEX q_h, INDEX q_i, INDEX q_e) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Padded<PITCH_E> queries{reinterpret_cast<STORAGE*>(shared + AT_QUERY)};
  const WeightTile weights{reinterpret_cast<STORAGE*>(shared + AT_SCORES)};
  const int parts_e = WIDE ? (E + WIDTH_E - 1) / WIDTH_E : 1, program = blockIdx.x / parts_e;
  const Columns own = Columns::of_part<WIDTH_E>(blockIdx.x % parts_e, E);
  const int blocks_c = (rows + BLOCK_N - 1) / BLOCK_N;
  const int from = program % blocks_c * BLOCK_N, part = program / blocks_c;
  const long long all = (long long)B * H * L, begin = (long long)part * chunk, end = min(begin + chunk, all);
  Product<BLOCK_N, WIDTH_E, false, false> sums;
  sums.clear();
  for (long long first = begin; first < end; first += BLOCK_M) {
    __syncthreads();
    load_rows<BLOCK_M, WIDTH_E>(queries, own, q_e, [&](int r) -> const STORAGE* {
      const long long at = first + r;
      if (at >= end) return nullptr;
      const int i = (int)(at % L), h = (int)(at / L % H), b = (int)(at / L / H);
      return query + (b * q_b + h * q_h + i * q_i);
    });
    for (int place = threadIdx.x; place < BLOCK_M * BLOCK_N; place += THREADS) {
      const int r = place / BLOCK_N, c = place % BLOCK_N;
      const bool here = first + r < end && from + c < rows;
      const COMPUTED x = here ? grad_term[(INDEX)(first + r) * rows + from + c] : (COMPUTED)0;
      *weights(r, c) = narrow<STORAGE>(x);
    }
    __syncthreads();
    sums.template multiply<BLOCK_M>(weights, queries);
  }
  sums.each([&](int m, int n, COMPUTED& x) {
    if (from + m < rows && n < own.count) parts[((INDEX)part * rows + from + m) * E + own.first + n] = x;
  });
}
