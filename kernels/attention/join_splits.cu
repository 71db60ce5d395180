// The parts of the keys that attention_forward.cu took by themselves, joined.
//
// Constants: STORAGE, COMPUTED, INDEX types; WARPS.
#include "runtime/cuda/types.cuh"

// out (rows, EV), lse (rows,) or null: the average of parts (splits, rows, EV), weighted by their log-sum-exps part_lse
// (splits, rows). All contiguous and the caller's. Blocks: WARPS rows each, a warp for a row.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) join_splits(
    const COMPUTED* parts, const COMPUTED* part_lse, STORAGE* out, COMPUTED* lse, INDEX rows, int EV, int splits) {
  const INDEX row = (INDEX)blockIdx.x * WARPS + threadIdx.x / 32;
  if (row >= rows) return;
  const COMPUTED none = (COMPUTED)__int_as_float((int)0xff800000u);
  COMPUTED largest = none;
  bool odd = false;
  for (int split = 0; split < splits; ++split) {
    const COMPUTED level = part_lse[split * rows + row];
    odd |= level != level;
    largest = level > largest ? level : largest;
  }
  const COMPUTED level = largest == none ? (COMPUTED)0 : largest;
  COMPUTED total = 0;
  for (int split = 0; split < splits; ++split) total += exp(part_lse[split * rows + row] - level);
  for (int e = threadIdx.x % 32; e < EV; e += 32) {
    COMPUTED sum = 0;
    for (int split = 0; split < splits; ++split) {
      const COMPUTED factor = exp(part_lse[split * rows + row] - level);
      // A part that sees nothing is 0, whatever the others are.
      if (factor != 0) sum += factor * parts[(split * rows + row) * EV + e];
    }
    out[row * EV + e] = narrow<STORAGE>(total == 0 ? (COMPUTED)0 : sum / total);
  }
  if (lse != nullptr && threadIdx.x % 32 == 0) lse[row] = total == 0 && !odd ? none : level + log(total);
}
