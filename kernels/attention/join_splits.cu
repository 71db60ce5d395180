// The parts of the keys that attention_forward.cu took by themselves, joined.
//
// Constants: STORAGE, COMPUTED, INDEX types; VECTOR neighbours of a row at a time; WARPS.
#include "runtime/cuda/types.cuh"

// out (rows, EV), lse (rows,) or null: the average of parts (splits, rows, EV), weighted by their log-sum-exps part_lse
// (splits, rows). All contiguous and the caller's. Blocks: WARPS rows each, a warp for a row.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) join_splits(
    const COMPUTED* parts, const COMPUTED* part_lse, STORAGE* out, COMPUTED* lse, INDEX rows, int EV, int splits) {
  const INDEX row = (INDEX)blockIdx.x * WARPS + threadIdx.x / 32;
  if (row >= rows) return;
  const COMPUTED none = (COMPUTED)__int_as_float((int)0xff800000u);
  const int lane = threadIdx.x % 32;
  COMPUTED largest = none, total = 0;
#pragma unroll 1
  for (int split = lane; split < splits; split += 32) {
    const COMPUTED level = part_lse[split * rows + row];
    largest = level > largest ? level : largest;
  }
#pragma unroll
  for (int apart = 16; apart >= 1; apart /= 2) {
    const COMPUTED other = __shfl_xor_sync(0xffffffffu, largest, apart);
    largest = other > largest ? other : largest;
  }
  const COMPUTED level = largest == none ? (COMPUTED)0 : largest;
#pragma unroll 1
  for (int split = lane; split < splits; split += 32) total += exp(part_lse[split * rows + row] - level);
#pragma unroll
  for (int apart = 16; apart >= 1; apart /= 2) total += __shfl_xor_sync(0xffffffffu, total, apart);
  for (int e = lane * VECTOR; e < EV; e += 32 * VECTOR) {
    COMPUTED sums[VECTOR];
#pragma unroll
    for (int t = 0; t < VECTOR; ++t) sums[t] = 0;
#pragma unroll 4
    for (int split = 0; split < splits; ++split) {
      const COMPUTED factor = exp(part_lse[split * rows + row] - level);
      // A part that sees nothing is 0, whatever the others are.
      if (factor == 0) continue;
      COMPUTED part[VECTOR];
      load_vector(parts + (split * rows + row) * EV + e, part);
#pragma unroll
      for (int t = 0; t < VECTOR; ++t) sums[t] += factor * part[t];
    }
#pragma unroll
    for (int t = 0; t < VECTOR; ++t) sums[t] = total == 0 ? (COMPUTED)0 : sums[t] / total;
    store_vector(out + row * EV + e, sums);
  }
  if (lse != nullptr && lane == 0) lse[row] = total == 0 ? none : level + log(total);
}
