// cross_entropy across the rows, whose elements lie apart: the loss of every row, and the gradients. Constants: see
// targets.cuh; nothing is kept in registers. All arrays are the caller's.
#include "softmax/targets.cuh"

// Of columns: a number for each of a block's rows in shared memory, of which neighbouring threads take neighbouring rows,
// so that what is read and written of a row is whole sectors, and each thread its own VECTOR rows.
template <class T> struct OfRows {
  static constexpr int STEP = 32 + 128 / (VECTOR * (int)sizeof(T)), SIZE = VECTOR * STEP;  // banks apart in both ways
  T* numbers;
  __device__ __forceinline__ T& operator[](int row) const { return numbers[row % VECTOR * STEP + row / VECTOR]; }
  __device__ __forceinline__ T& own(int v) const { return numbers[v * STEP + threadIdx.x]; }
};

// The block's rows: f(place in the block, row of inner) for each, by one thread.
template <class F> __device__ __forceinline__ void each_row(int inner, F f) {
  const int rows = blockDim.x * VECTOR, first = blockIdx.x % ((inner + rows - 1) / rows) * rows;
  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < rows && first + i < inner; i += blockDim.x * blockDim.y)
    f(i, first + i);
}

// What follows the memory of over_column: four numbers of each row, and its class.
struct RowNumbers {
  OfRows<COMPUTED> first, second, third, fourth;
  OfRows<int> index;
  __device__ __forceinline__ explicit RowNumbers(COMPUTED* scratch) {
    COMPUTED* at = scratch + (blockDim.y > 1 ? blockDim.x * blockDim.y * VECTOR : 0);
    constexpr int size = OfRows<COMPUTED>::SIZE;
    first.numbers = at;
    second.numbers = at + size;
    third.numbers = at + 2 * size;
    fourth.numbers = at + 3 * size;
    index.numbers = reinterpret_cast<int*>(at + 4 * size);
  }
};

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) losses_of_columns(
    const STORAGE* __restrict__ x,        // (outer, n, inner), read
    const TARGET* __restrict__ target,    // (outer, inner) class indices or (outer, n, inner) probabilities, read
    const STORAGE* __restrict__ weight,   // (n,), contiguous, or null, read
    STORAGE* __restrict__ each,           // (outer, inner), contiguous: the losses, or null
    COMPUTED* __restrict__ wide,          // (outer, inner): the losses that are summed, where each is null
    COMPUTED* __restrict__ maxima,        // (outer, inner): of the rows, written, or null
    COMPUTED* __restrict__ log_sums,      // (outer, inner): log(sum(exp(x - maximum))), written, or null
    int n, int inner, long long x_outer, long long x_n, long long x_inner, long long target_outer, long long target_n,
    long long target_inner, long long ignore_index, COMPUTED smoothing) {
  extern __shared__ COMPUTED scratch[];
  const Targets targets(target, weight, ignore_index, smoothing, n);
  const RowNumbers numbers(scratch);
  const ColumnPlace at(inner);
  const bool exists = at.inner < inner;
  const STORAGE* from = x + at.outer * x_outer + at.inner * x_inner;
  const TARGET* of_block = target + at.outer * target_outer;
  Statistics mine[VECTOR];
  COMPUTED part[VECTOR], largest[VECTOR], log_sum[VECTOR], loss[VECTOR];
#if INDEXED
  // The number at each row's class, found as it streams by.
  COMPUTED at_class[VECTOR];
  int index[VECTOR];
  each_row(inner, [&](int i, int row) { numbers.index[i] = (int)Class(targets, of_block + row * target_inner, n).index; });
  __syncthreads();
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) index[v] = numbers.index.own(v);
  fill(at_class, COMPUTED(0));
#endif
  for (int i = threadIdx.y; i < n; i += blockDim.y) {
    load_columns(from + i * x_n, exists, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      mine[v].add(part[v]);
#if INDEXED
      if (i == index[v]) at_class[v] = part[v];
#endif
    }
  }
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) largest[v] = mine[v].largest;
  over_column(largest, Maximum(), scratch);
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) log_sum[v] = mine[v].total_below(largest[v]);
  over_column(log_sum, Sum(), scratch);
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) log_sum[v] = log(log_sum[v]);
  fill(loss, COMPUTED(0));
  if (targets.dense) {
    COMPUTED probabilities[VECTOR];
    for (int i = threadIdx.y; i < n; i += blockDim.y) {
      load_columns(from + i * x_n, exists, COMPUTED(0), part);
      const COMPUTED of_class = weight_of(weight, i);
#if INDEXED
      fill(probabilities, COMPUTED(0));
#else
      load_columns(of_block + at.inner * target_inner + i * target_n, exists, COMPUTED(0), probabilities);
#endif
#pragma unroll
      for (int v = 0; v < VECTOR; ++v)
        loss[v] += targets.dense_of(probabilities[v], of_class) * (largest[v] - part[v] + log_sum[v]);
    }
    over_column(loss, Sum(), scratch);
  }
#if INDEXED
  over_column(at_class, Sum(), scratch);
#endif
  if (threadIdx.y == 0) {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      numbers.first.own(v) = largest[v];
      numbers.second.own(v) = log_sum[v];
      numbers.third.own(v) = loss[v];
#if INDEXED
      numbers.fourth.own(v) = at_class[v];
#endif
    }
  }
  __syncthreads();
  each_row(inner, [&](int i, int row) {
    const COMPUTED most = numbers.first[i], sum = numbers.second[i];
    COMPUTED found = numbers.third[i];
#if INDEXED
    const Class of(targets, of_block + row * target_inner, n);
    found += of.weight * targets.hard * (most - numbers.fourth[i] + sum);
    if (!of.counts) found = 0;
#endif
    const long long place = at.outer * inner + row;
    store_loss(each, wide, place, found);
    if (maxima) {
      maxima[place] = most;
      log_sums[place] = sum;
    }
  });
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) loss_gradient_columns(
    const STORAGE* __restrict__ grad,     // of the losses: one, or (outer, inner) with its strides; read
    const STORAGE* __restrict__ x,        // (outer, n, inner), read
    const TARGET* __restrict__ target,    // (outer, inner) class indices or (outer, n, inner) probabilities, read
    const STORAGE* __restrict__ weight,   // (n,), contiguous, or null, read
    const COMPUTED* __restrict__ maxima,  // (outer, inner), of forward, read
    const COMPUTED* __restrict__ log_sums,  // (outer, inner), of forward, read
    const COMPUTED* __restrict__ divisor,   // what the mean was divided by, or null
    STORAGE* __restrict__ grad_x,         // (outer, n, inner), contiguous, written, or null
    STORAGE* __restrict__ grad_soft,      // (outer, n, inner), contiguous, of probabilities, written, or null
    int n, int inner, long long grad_outer, long long grad_inner, long long x_outer, long long x_n, long long x_inner,
    long long target_outer, long long target_n, long long target_inner, long long ignore_index, COMPUTED smoothing) {
  extern __shared__ COMPUTED scratch[];
  const Targets targets(target, weight, ignore_index, smoothing, n);
  const RowNumbers numbers(scratch);
  const ColumnPlace at(inner);
  const bool exists = at.inner < inner;
  const STORAGE* from = x + at.outer * x_outer + at.inner * x_inner;
  const TARGET* of_block = target + at.outer * target_outer;
  const TARGET* of_rows = of_block + at.inner * target_inner;
  const long long written = at.outer * n * inner + at.inner;
  COMPUTED probabilities[VECTOR], part[VECTOR], u_sum[VECTOR];
  fill(u_sum, COMPUTED(0));
  fill(probabilities, COMPUTED(0));
  each_row(inner, [&](int i, int row) {
    const long long place = at.outer * inner + row;
    const COMPUTED g = widen(grad[at.outer * grad_outer + row * grad_inner]);
    numbers.first[i] = maxima[place];
    numbers.second[i] = log_sums[place];
    numbers.third[i] = divisor ? g / *divisor : g;
#if INDEXED
    const Class of(targets, of_block + row * target_inner, n);
    numbers.fourth[i] = of.weight * targets.hard;
    numbers.index[i] = of.counts ? (int)of.index : -1;
#endif
  });
  __syncthreads();
  if (grad_x && targets.dense) {
    for (int i = threadIdx.y; i < n; i += blockDim.y) {
      const COMPUTED of_class = weight_of(weight, i);
#if !INDEXED
      load_columns(of_rows + i * target_n, exists, COMPUTED(0), probabilities);
#endif
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) u_sum[v] += targets.dense_of(probabilities[v], of_class);
    }
    over_column(u_sum, Sum(), scratch);
  }
  if (!exists) return;
  COMPUTED largest[VECTOR], shift[VECTOR], g[VECTOR];
#if INDEXED
  int index[VECTOR];  // -1: the row is ignored
  COMPUTED here[VECTOR];
#endif
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) {
    largest[v] = numbers.first.own(v);
    shift[v] = numbers.second.own(v);
    g[v] = numbers.third.own(v);
#if INDEXED
    here[v] = numbers.fourth.own(v);
    index[v] = numbers.index.own(v);
    u_sum[v] += here[v];
#endif
  }
  for (int i = threadIdx.y; i < n; i += blockDim.y) {
    load_columns(from + i * x_n, exists, COMPUTED(0), part);
    const COMPUTED of_class = targets.dense ? weight_of(weight, i) : COMPUTED(1);
#if !INDEXED
    load_columns(of_rows + i * target_n, exists, COMPUTED(0), probabilities);
#endif
    COMPUTED found[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      part[v] = part[v] - largest[v] - shift[v];
      found[v] = exp(part[v]) * u_sum[v];
      if (targets.dense) found[v] -= targets.dense_of(probabilities[v], of_class);
#if INDEXED
      if (i == index[v]) found[v] -= here[v];
      found[v] = index[v] < 0 ? COMPUTED(0) : found[v] * g[v];
#else
      found[v] *= g[v];
#endif
    }
    if (grad_x) store_columns(grad_x + written + (long long)i * inner, exists, found);
#if !INDEXED
    if (grad_soft) {
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) part[v] *= of_class * (-targets.hard * g[v]);
      store_columns(grad_soft + written + (long long)i * inner, exists, part);
    }
#endif
  }
}
