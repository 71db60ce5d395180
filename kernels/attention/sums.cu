// Sums over parts, always in the same order.
//
// Constants: RESULT, COMPUTED, INDEX types; WARPS.
#include "runtime/cuda/types.cuh"

// out (size,) = factor * the sum of parts (count, size) over the parts in turn. Contiguous, the caller's.
// Blocks: WARPS * 32 places each.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) sum_parts(
    const COMPUTED* parts, RESULT* out, INDEX size, int count, COMPUTED factor) {
  const INDEX place = (INDEX)blockIdx.x * (WARPS * 32) + threadIdx.x;
  if (place >= size) return;
  COMPUTED sum = 0;
  for (int part = 0; part < count; ++part) sum += parts[part * size + place];
  out[place] = narrow<RESULT>(sum * factor);
}
