// Sums over parts, over queries and over distances, always in the same order.
//
// Constants: STORAGE, COMPUTED, RESULT, INDEX types; COLUMNS: neighbouring threads on neighbouring numbers; WARPS.
#include "runtime/cuda/types.cuh"

// out (size,) = factor * the sum of parts (count, size) over the parts in turn. Contiguous, the caller's.
// Blocks: WARPS * 32 places each.
extern "C" __global__ void __launch_bounds__(WARPS * 32) sum_parts(
    const COMPUTED* parts, RESULT* out, INDEX size, int count, COMPUTED factor) {
  const INDEX place = (INDEX)blockIdx.x * (WARPS * 32) + threadIdx.x;
  if (place >= size) return;
  COMPUTED sum = 0;
  for (int part = 0; part < count; ++part) sum += parts[part * size + place];
  out[place] = narrow<RESULT>(sum * factor);
}

// parts (chunks, H, C) contiguous: of each head the sums of numbers (B, H, L, C), contiguous, over a chunk of the B * L
// queries. The caller's. Blocks: COLUMNS numbers of each head in each chunk; the other threads share the queries.
extern "C" __global__ void __launch_bounds__(WARPS * 32) sum_queries(
    const COMPUTED* numbers, COMPUTED* parts, int B, int H, int L, int C, int chunk) {
  constexpr int DEPTH = WARPS * 32 / COLUMNS;
  __shared__ COMPUTED sums[DEPTH][COLUMNS];
  const int blocks_c = (C + COLUMNS - 1) / COLUMNS, column = threadIdx.x % COLUMNS, depth = threadIdx.x / COLUMNS;
  const int c = (int)(blockIdx.x % blocks_c) * COLUMNS + column, h = (int)(blockIdx.x / blocks_c % H);
  const int part = blockIdx.x / blocks_c / H;
  const long long begin = (long long)part * chunk, end = min(begin + chunk, (long long)B * L);
  COMPUTED sum = 0;
  if (c < C)
    for (long long at = begin + depth; at < end; at += DEPTH)
      sum += numbers[(((INDEX)(at / L) * H + h) * L + (INDEX)(at % L)) * C + c];
  sums[depth][column] = sum;
  __syncthreads();
#pragma unroll
  for (int apart = DEPTH / 2; apart >= 1; apart /= 2) {
    if (depth < apart) sums[depth][column] += sums[depth + apart][column];
    __syncthreads();
  }
  if (depth == 0 && c < C) parts[((INDEX)part * H + h) * C + c] = sums[0][column];
}

// term (H, C) contiguous = table (rows, H) at the rows of `places` (C,), with strides of its own. The caller's.
// Blocks: WARPS * 32 numbers each.
extern "C" __global__ void __launch_bounds__(WARPS * 32) take_rows(
    const STORAGE* table, const int* places, COMPUTED* term, int H, int C, INDEX t_row, INDEX t_h) {
  const INDEX number = (INDEX)blockIdx.x * (WARPS * 32) + threadIdx.x;
  if (number < (INDEX)H * C) term[number] = widen(table[places[number % C] * t_row + number / C * t_h]);
}

// The transpose: out (rows, H) contiguous = of each head and row the sum of parts (chunks, H, C) over the chunks and
// over what has this row in `places`, in turn. The caller's. Blocks: WARPS * 32 numbers each.
extern "C" __global__ void __launch_bounds__(WARPS * 32) sum_rows(
    const COMPUTED* parts, const int* places, STORAGE* out, int rows, int H, int C, int chunks) {
  const int number = blockIdx.x * (WARPS * 32) + threadIdx.x;
  if (number >= rows * H) return;
  const int row = number / H, h = number % H;
  COMPUTED sum = 0;
  for (int c = 0; c < C; ++c)
    if (places[c] == row)
      for (int part = 0; part < chunks; ++part) sum += parts[((INDEX)part * H + h) * C + c];
  out[number] = narrow<STORAGE>(sum);
}
