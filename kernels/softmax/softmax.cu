// softmax and log_softmax. Constants: see runtime/cuda/rows.cuh; STEPS = 0 where a row does not stay in registers.
// Half precision is computed in float. In every kernel `outer`, `n`, `inner` are the sizes of arrays seen so, and
// strides are in elements. All arrays are the caller's.
#include "softmax/statistics.cuh"

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) softmax_rows(
    const STORAGE* __restrict__ x,  // (outer, n), read
    STORAGE* __restrict__ out,      // (outer, n), contiguous, written
    long long outer, int n, long long x_outer, long long x_n,
    int group,    // threads of a row
    bool is_log)  // log_softmax
{
  __shared__ COMPUTED scratch[ROW_THREADS / 32];
  const RowPlace at(group);
  // A row that does not exist has no elements, but its threads take part in the barriers.
  const int size = at.row < outer ? n : 0;
  const STORAGE* from = x + at.row * x_outer;
  STORAGE* to = out + at.row * n;
#if STEPS > 0
  COMPUTED kept[STEPS][VECTOR];
  COMPUTED largest = negative_infinity<COMPUTED>(), total = 0;
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    load_part(from, x_n, (s * group + at.lane) * VECTOR, size, negative_infinity<COMPUTED>(), kept[s]);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) largest = Maximum()(largest, kept[s][v]);
  }
  largest = over_group(largest, Maximum(), group, scratch);
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      kept[s][v] -= largest;
      const COMPUTED power = exp(kept[s][v]);
      total += power;
      if (!is_log) kept[s][v] = power;
    }
  }
  total = over_group(total, Sum(), group, scratch);
  const COMPUTED factor = is_log ? COMPUTED(1) : 1 / total, less = is_log ? log(total) : COMPUTED(0);
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) kept[s][v] = is_log ? kept[s][v] - less : kept[s][v] * factor;
    store_part(to, (s * group + at.lane) * VECTOR, size, kept[s]);
  }
#else
  COMPUTED part[VECTOR];
  Statistics mine;
  for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
    load_part(from, x_n, i, size, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) mine.add(part[v]);
  }
  const COMPUTED largest = over_group(mine.largest, Maximum(), group, scratch);
  const COMPUTED total = over_group(mine.total_below(largest), Sum(), group, scratch);
  const COMPUTED factor = is_log ? COMPUTED(1) : 1 / total, less = is_log ? log(total) : COMPUTED(0);
  for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
    load_part(from, x_n, i, size, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      // In this order of subtraction large logits lose nothing.
      const COMPUTED shifted = part[v] - largest;
      part[v] = is_log ? shifted - less : exp(shifted) * factor;
    }
    store_part(to, i, size, part);
  }
#endif
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) softmax_columns(
    const STORAGE* __restrict__ x,  // (outer, n, inner), read
    STORAGE* __restrict__ out,      // (outer, n, inner), contiguous, written
    int n, int inner, long long x_outer, long long x_n, long long x_inner,
    bool is_log)  // log_softmax
{
  extern __shared__ COMPUTED scratch[];
  const ColumnPlace at(inner);
  const bool exists = at.inner < inner;
  const STORAGE* from = x + at.outer * x_outer + at.inner * x_inner;
  STORAGE* to = out + at.outer * n * inner + at.inner;
  COMPUTED largest[VECTOR], total[VECTOR];
#if STEPS > 0
  COMPUTED kept[STEPS][VECTOR];
  fill(largest, negative_infinity<COMPUTED>());
  fill(total, COMPUTED(0));
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    const int i = s * blockDim.y + threadIdx.y;
    load_columns(from + i * x_n, exists && i < n, negative_infinity<COMPUTED>(), kept[s]);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) largest[v] = Maximum()(largest[v], kept[s][v]);
  }
  over_column(largest, Maximum(), scratch);
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      kept[s][v] -= largest[v];
      const COMPUTED power = exp(kept[s][v]);
      // What lies behind the end is no NaN, though a column be nothing but -inf.
      if (s * blockDim.y + threadIdx.y < n) total[v] += power;
      if (!is_log) kept[s][v] = power;
    }
  }
  over_column(total, Sum(), scratch);
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) total[v] = is_log ? log(total[v]) : 1 / total[v];
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    const int i = s * blockDim.y + threadIdx.y;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) kept[s][v] = is_log ? kept[s][v] - total[v] : kept[s][v] * total[v];
    store_columns(to + (long long)i * inner, exists && i < n, kept[s]);
  }
#else
  COMPUTED part[VECTOR];
  Statistics mine[VECTOR];
  for (int i = threadIdx.y; i < n; i += blockDim.y) {
    load_columns(from + i * x_n, exists, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) mine[v].add(part[v]);
  }
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) largest[v] = mine[v].largest;
  over_column(largest, Maximum(), scratch);
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) total[v] = mine[v].total_below(largest[v]);
  over_column(total, Sum(), scratch);
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) total[v] = is_log ? log(total[v]) : 1 / total[v];
  for (int i = threadIdx.y; i < n; i += blockDim.y) {
    load_columns(from + i * x_n, exists, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      const COMPUTED shifted = part[v] - largest[v];
      part[v] = is_log ? shifted - total[v] : exp(shifted) * total[v];
    }
    store_columns(to + (long long)i * inner, exists, part);
  }
#endif
}

// What backward sums over a row, and what it then makes of an element, from the gradient of y and y; reference.py has
// the equations.
__device__ __forceinline__ COMPUTED summand(COMPUTED grad, COMPUTED y, bool is_log) { return is_log ? grad : grad * y; }
__device__ __forceinline__ COMPUTED gradient(COMPUTED grad, COMPUTED y, COMPUTED total, bool is_log) {
  return is_log ? grad - exp(y) * total : y * (grad - total);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) softmax_gradient_rows(
    const STORAGE* __restrict__ grad,  // (outer, n), of y, read
    const STORAGE* __restrict__ y,     // (outer, n), the output, read
    STORAGE* __restrict__ out,         // (outer, n), contiguous, written
    long long outer, int n, long long grad_outer, long long grad_n, long long y_outer, long long y_n, int group,
    bool is_log) {
  __shared__ COMPUTED scratch[ROW_THREADS / 32];
  const RowPlace at(group);
  const int size = at.row < outer ? n : 0;
  const STORAGE *from_grad = grad + at.row * grad_outer, *from_y = y + at.row * y_outer;
  STORAGE* to = out + at.row * n;
  COMPUTED total = 0;
#if STEPS > 0
  COMPUTED g[STEPS][VECTOR], kept[STEPS][VECTOR];
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    load_part(from_grad, grad_n, (s * group + at.lane) * VECTOR, size, COMPUTED(0), g[s]);
    load_part(from_y, y_n, (s * group + at.lane) * VECTOR, size, COMPUTED(0), kept[s]);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) total += summand(g[s][v], kept[s][v], is_log);
  }
  total = over_group(total, Sum(), group, scratch);
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) g[s][v] = gradient(g[s][v], kept[s][v], total, is_log);
    store_part(to, (s * group + at.lane) * VECTOR, size, g[s]);
  }
#else
  COMPUTED g[VECTOR], part[VECTOR];
  fill(part, COMPUTED(0));
  for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
    load_part(from_grad, grad_n, i, size, COMPUTED(0), g);
    if (!is_log) load_part(from_y, y_n, i, size, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) total += summand(g[v], part[v], is_log);
  }
  total = over_group(total, Sum(), group, scratch);
  for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
    load_part(from_grad, grad_n, i, size, COMPUTED(0), g);
    load_part(from_y, y_n, i, size, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) g[v] = gradient(g[v], part[v], total, is_log);
    store_part(to, i, size, g);
  }
#endif
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) softmax_gradient_columns(
    const STORAGE* __restrict__ grad,  // (outer, n, inner), of y, read
    const STORAGE* __restrict__ y,     // (outer, n, inner), the output, read
    STORAGE* __restrict__ out,         // (outer, n, inner), contiguous, written
    int n, int inner, long long grad_outer, long long grad_n, long long grad_inner, long long y_outer, long long y_n,
    long long y_inner, bool is_log) {
  extern __shared__ COMPUTED scratch[];
  const ColumnPlace at(inner);
  const bool exists = at.inner < inner;
  const STORAGE* from_grad = grad + at.outer * grad_outer + at.inner * grad_inner;
  const STORAGE* from_y = y + at.outer * y_outer + at.inner * y_inner;
  STORAGE* to = out + at.outer * n * inner + at.inner;
  COMPUTED total[VECTOR];
  fill(total, COMPUTED(0));
#if STEPS > 0
  COMPUTED g[STEPS][VECTOR], kept[STEPS][VECTOR];
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    const int i = s * blockDim.y + threadIdx.y;
    load_columns(from_grad + i * grad_n, exists && i < n, COMPUTED(0), g[s]);
    load_columns(from_y + i * y_n, exists && i < n, COMPUTED(0), kept[s]);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) total[v] += summand(g[s][v], kept[s][v], is_log);
  }
  over_column(total, Sum(), scratch);
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    const int i = s * blockDim.y + threadIdx.y;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) g[s][v] = gradient(g[s][v], kept[s][v], total[v], is_log);
    store_columns(to + (long long)i * inner, exists && i < n, g[s]);
  }
#else
  COMPUTED g[VECTOR], part[VECTOR];
  for (int i = threadIdx.y; i < n; i += blockDim.y) {
    load_columns(from_grad + i * grad_n, exists, COMPUTED(0), g);
    load_columns(from_y + i * y_n, exists, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) total[v] += summand(g[v], part[v], is_log);
  }
  over_column(total, Sum(), scratch);
  for (int i = threadIdx.y; i < n; i += blockDim.y) {
    load_columns(from_grad + i * grad_n, exists, COMPUTED(0), g);
    load_columns(from_y + i * y_n, exists, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) g[v] = gradient(g[v], part[v], total[v], is_log);
    store_columns(to + (long long)i * inner, exists, g);
  }
#endif
}
