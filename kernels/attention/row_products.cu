// What attention's backward pass needs of each query before anything else.
//
// Constants: STORAGE, COMPUTED, INDEX types; LANES: threads of a row, a power of two up to 32; WARPS; ALIGNED: rows in
// loads of 128 bits.
#include "runtime/cuda/types.cuh"

// delta (B, H, L) contiguous = the sum of grad * out over a row, less the gradient of the log-sum-exp.
// grad (B, H, L, EV), out (B, H, L, EV), grad_lse (B, H, L), with strides of theirs. grad_lse may be null.
// Blocks: WARPS * 32 / LANES rows each.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) row_products(
    const STORAGE* grad, const STORAGE* out, const COMPUTED* grad_lse, COMPUTED* delta, int B, int H, int L, int EV,
    INDEX g_b, INDEX g_h, INDEX g_i, INDEX g_e, INDEX o_b, INDEX o_h, INDEX o_i, INDEX o_e, INDEX l_b, INDEX l_h,
    INDEX l_i) {
  constexpr int AT_A_TIME = ALIGNED ? 16 / (int)sizeof(STORAGE) : 1;
  const long long row = (long long)blockIdx.x * (WARPS * 32 / LANES) + threadIdx.x / LANES;
  const bool here = row < (long long)B * H * L;
  const int i = here ? (int)(row % L) : 0, h = here ? (int)(row / L % H) : 0, b = here ? (int)(row / L / H) : 0;
  COMPUTED sum = 0;
  if (here) {
    const STORAGE* const g = grad + (b * g_b + h * g_h + i * g_i);
    const STORAGE* const o = out + (b * o_b + h * o_h + i * o_i);
#pragma unroll 1
    for (int e = threadIdx.x % LANES * AT_A_TIME; e < EV; e += LANES * AT_A_TIME) {
      if constexpr (ALIGNED) {
        const auto x = *reinterpret_cast<const Vector<STORAGE, AT_A_TIME>*>(g + e);
        const auto y = *reinterpret_cast<const Vector<STORAGE, AT_A_TIME>*>(o + e);
#pragma unroll
        for (int t = 0; t < AT_A_TIME; ++t) sum += (COMPUTED)widen(x.v[t]) * (COMPUTED)widen(y.v[t]);
      } else {
        sum += (COMPUTED)widen(g[e * g_e]) * (COMPUTED)widen(o[e * o_e]);
      }
    }
  }
#pragma unroll
  for (int apart = LANES / 2; apart >= 1; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
  if (here && threadIdx.x % LANES == 0) {
    if (grad_lse != nullptr) sum -= grad_lse[b * l_b + h * l_h + i * l_i];
    delta[row] = sum;
  }
}
