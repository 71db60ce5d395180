// cross_entropy: the loss of every row, their sum, and the gradients. Constants: see runtime/cuda/rows.cuh (nothing is
// kept in registers); TARGET: the type of class indices where INDEXED is 1, else STORAGE, of probabilities.
//
// Names as in cross_entropy_cpu.py: u are a row's targets made smooth and weighted: a dense part (hard * t_c + even) * w_c,
// left out where it is zero, and for class indices one term hard * w_t at the class t, with hard = 1 - smoothing and
// even = smoothing / n. A class index that is neither a class nor ignore_index is never used as an address and makes its
// row NaN.
#include "softmax/statistics.cuh"

// The weight of a class, 1 without weights.
__device__ __forceinline__ COMPUTED weight_of(const STORAGE* weight, long long c) {
  return weight ? COMPUTED(widen(weight[c])) : COMPUTED(1);
}

struct Targets {
  const TARGET* target;
  const STORAGE* weight;  // (n,), contiguous, or null
  long long ignore_index;
  COMPUTED hard, even;
  bool dense;

  __device__ __forceinline__ Targets(
      const TARGET* target, const STORAGE* weight, long long ignore_index, COMPUTED smoothing, int n)
      : target(target), weight(weight), ignore_index(ignore_index), hard(1 - smoothing), even(smoothing / n),
        dense(!INDEXED || smoothing != 0) {}

  __device__ __forceinline__ COMPUTED dense_of(COMPUTED probability, COMPUTED of_class) const {
    return (INDEXED ? even : hard * probability + even) * of_class;
  }
};

#if INDEXED
// A row's class.
struct Class {
  long long index;   // or 0, where it is no class
  COMPUTED weight;   // NaN there
  bool counts;       // it is not ignored
  __device__ __forceinline__ Class(const Targets& t, const TARGET* at, int n) {
    const long long found = *at;
    const bool inside = found >= 0 && found < n;
    counts = found != t.ignore_index;
    index = inside ? found : 0;
    weight = inside ? weight_of(t.weight, index) : not_a_number<COMPUTED>();
  }
};
#endif

// Writes one number of a row, rounded where losses are returned as they are.
__device__ __forceinline__ void store_loss(STORAGE* each, COMPUTED* wide, long long row, COMPUTED loss) {
  if (each) each[row] = narrow<STORAGE>(loss);
  else wide[row] = loss;
}

// VECTOR weights from class c on.
__device__ __forceinline__ void load_weights(const STORAGE* weight, int c, int n, COMPUTED (&values)[VECTOR]) {
  if (weight) load_part(weight, 1, c, n, COMPUTED(0), values);
  else fill(values, COMPUTED(1));
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) losses_of_rows(
    const STORAGE* __restrict__ x,        // (outer, n), read
    const TARGET* __restrict__ target,    // (outer,) class indices or (outer, n) probabilities, read
    const STORAGE* __restrict__ weight,   // (n,), contiguous, or null, read
    STORAGE* __restrict__ each,           // (outer,), contiguous: the losses, or null
    COMPUTED* __restrict__ wide,          // (outer,): the losses that are summed, where each is null
    COMPUTED* __restrict__ maxima,        // (outer,): of the rows, written, or null
    COMPUTED* __restrict__ log_sums,      // (outer,): log(sum(exp(x - maximum))), written, or null
    long long outer, int n, long long x_outer, long long x_n, long long target_outer, long long target_n,
    long long ignore_index, COMPUTED smoothing, int group) {
  __shared__ COMPUTED scratch[ROW_THREADS / 32];
  const Targets targets(target, weight, ignore_index, smoothing, n);
  const RowPlace at(group);
  const int size = at.row < outer ? n : 0;
  const STORAGE* from = x + at.row * x_outer;
  const TARGET* of_row = target + at.row * target_outer;
  Statistics mine;
  COMPUTED part[VECTOR];
  for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
    load_part(from, x_n, i, size, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) mine.add(part[v]);
  }
  const COMPUTED largest = over_group(mine.largest, Maximum(), group, scratch);
  const COMPUTED log_sum = log(over_group(mine.total_below(largest), Sum(), group, scratch));
  COMPUTED loss = 0;
  if (targets.dense) {
    COMPUTED weights[VECTOR], probabilities[VECTOR];
    for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
      load_part(from, x_n, i, size, COMPUTED(0), part);
      load_weights(weight, i, size, weights);
#if INDEXED
      fill(probabilities, COMPUTED(0));
#else
      load_part(of_row, target_n, i, size, COMPUTED(0), probabilities);
#endif
      // In this order of subtraction large logits lose nothing.
#pragma unroll
      for (int v = 0; v < VECTOR; ++v)
        loss += targets.dense_of(probabilities[v], weights[v]) * (largest - part[v] + log_sum);
    }
    loss = over_group(loss, Sum(), group, scratch);
  }
  if (at.lane == 0 && at.row < outer) {
#if INDEXED
    const Class of(targets, of_row, n);
    loss += of.weight * targets.hard * (largest - COMPUTED(widen(from[of.index * x_n])) + log_sum);
    if (!of.counts) loss = 0;
#endif
    store_loss(each, wide, at.row, loss);
    if (maxima) {
      maxima[at.row] = largest;
      log_sums[at.row] = log_sum;
    }
  }
}

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
  const ColumnPlace at(inner);
  const bool exists = at.inner < inner;
  const STORAGE* from = x + at.outer * x_outer + at.inner * x_inner;
  const TARGET* of_rows = target + at.outer * target_outer + at.inner * target_inner;
  Statistics mine[VECTOR];
  COMPUTED part[VECTOR], largest[VECTOR], log_sum[VECTOR], loss[VECTOR];
  for (int i = threadIdx.y; i < n; i += blockDim.y) {
    load_columns(from + i * x_n, exists, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) mine[v].add(part[v]);
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
      load_columns(of_rows + i * target_n, exists, COMPUTED(0), probabilities);
#endif
#pragma unroll
      for (int v = 0; v < VECTOR; ++v)
        loss[v] += targets.dense_of(probabilities[v], of_class) * (largest[v] - part[v] + log_sum[v]);
    }
    over_column(loss, Sum(), scratch);
  }
  if (threadIdx.y == 0 && exists) {
#if INDEXED
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      const Class of(targets, of_rows + v * target_inner, n);
      const COMPUTED found = widen(from[of.index * x_n + v * x_inner]);
      loss[v] += of.weight * targets.hard * (largest[v] - found + log_sum[v]);
      if (!of.counts) loss[v] = 0;
    }
#endif
    const long long row = at.outer * inner + at.inner;
    if (each) store_numbers(each + row, loss);
    else store_numbers(wide + row, loss);
    if (maxima) {
      store_numbers(maxima + row, largest);
      store_numbers(log_sums + row, log_sum);
    }
  }
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) loss_gradient_rows(
    const STORAGE* __restrict__ grad,     // of the losses: one, or (outer,) with its stride; read
    const STORAGE* __restrict__ x,        // (outer, n), read
    const TARGET* __restrict__ target,    // (outer,) class indices or (outer, n) probabilities, read
    const STORAGE* __restrict__ weight,   // (n,), contiguous, or null, read
    const COMPUTED* __restrict__ maxima,  // (outer,), of forward, read
    const COMPUTED* __restrict__ log_sums,  // (outer,), of forward, read
    const COMPUTED* __restrict__ divisor,   // what the mean was divided by, or null
    STORAGE* __restrict__ grad_x,         // (outer, n), contiguous, written, or null
    STORAGE* __restrict__ grad_soft,      // (outer, n), contiguous, of probabilities, written, or null
    long long outer, int n, long long grad_outer, long long x_outer, long long x_n, long long target_outer,
    long long target_n, long long ignore_index, COMPUTED smoothing, int group) {
  __shared__ COMPUTED scratch[ROW_THREADS / 32];
  const Targets targets(target, weight, ignore_index, smoothing, n);
  const RowPlace at(group);
  const bool exists = at.row < outer;
  const int size = exists ? n : 0;
  const STORAGE* from = x + at.row * x_outer;
  const TARGET* of_row = target + at.row * target_outer;
  COMPUTED weights[VECTOR], probabilities[VECTOR], part[VECTOR];
  COMPUTED u_sum = 0;
  fill(probabilities, COMPUTED(0));
  if (grad_x && targets.dense) {
    for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
      load_weights(weight, i, size, weights);
#if !INDEXED
      load_part(of_row, target_n, i, size, COMPUTED(0), probabilities);
#endif
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) u_sum += targets.dense_of(probabilities[v], weights[v]);
    }
    u_sum = over_group(u_sum, Sum(), group, scratch);
  }
  if (!exists) return;
  COMPUTED g = widen(grad[at.row * grad_outer]);
  if (divisor) g /= *divisor;
  const COMPUTED largest = maxima[at.row], log_sum = log_sums[at.row];
  bool counts = true;
#if INDEXED
  const Class of(targets, of_row, n);
  const COMPUTED here = of.weight * targets.hard;
  u_sum += here;
  counts = of.counts;
#endif
  for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
    load_part(from, x_n, i, size, COMPUTED(0), part);
    if (targets.dense) load_weights(weight, i, size, weights);
#if !INDEXED
    load_part(of_row, target_n, i, size, COMPUTED(0), probabilities);
#endif
    COMPUTED found[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      part[v] = part[v] - largest - log_sum;
      found[v] = exp(part[v]) * u_sum;
      if (targets.dense) found[v] -= targets.dense_of(probabilities[v], weights[v]);
#if INDEXED
      if (i + v == of.index) found[v] -= here;
#endif
      found[v] = counts ? found[v] * g : COMPUTED(0);
    }
    if (grad_x) store_part(grad_x + at.row * n, i, size, found);
#if !INDEXED
    if (grad_soft) {
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) part[v] *= weights[v] * (-targets.hard * g);
      store_part(grad_soft + at.row * n, i, size, part);
    }
#endif
  }
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
  const ColumnPlace at(inner);
  const bool exists = at.inner < inner;
  const STORAGE* from = x + at.outer * x_outer + at.inner * x_inner;
  const TARGET* of_rows = target + at.outer * target_outer + at.inner * target_inner;
  const long long written = at.outer * n * inner + at.inner;
  COMPUTED probabilities[VECTOR], part[VECTOR], u_sum[VECTOR], g[VECTOR], shift[VECTOR];
  fill(u_sum, COMPUTED(0));
  fill(probabilities, COMPUTED(0));
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
  bool counts[VECTOR];
#if INDEXED
  long long index[VECTOR];
  COMPUTED here[VECTOR];
#endif
  COMPUTED largest[VECTOR];
  load_numbers(maxima + at.outer * inner + at.inner, largest);
  load_numbers(log_sums + at.outer * inner + at.inner, shift);
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) {
    g[v] = widen(grad[at.outer * grad_outer + (at.inner + v) * grad_inner]);
    if (divisor) g[v] /= *divisor;
    counts[v] = true;
#if INDEXED
    const Class of(targets, of_rows + v * target_inner, n);
    index[v] = of.index;
    here[v] = of.weight * targets.hard;
    u_sum[v] += here[v];
    counts[v] = of.counts;
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
#endif
      found[v] = counts[v] ? found[v] * g[v] : COMPUTED(0);
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

// The sums of the losses of `each` rows in turn, a block for each, always in the same order.
extern "C" __global__ void __launch_bounds__(256) sum_losses(
    const COMPUTED* __restrict__ losses,  // (rows,), read
    const TARGET* __restrict__ target,    // class indices (outer, inner), or null; read
    const STORAGE* __restrict__ weight,   // (n,), contiguous, or null, read
    COMPUTED* __restrict__ sums,          // (blocks,), written
    COMPUTED* __restrict__ counts,        // (blocks,), of what the mean divides by, written, or null
    long long rows, int n, int inner, long long target_outer, long long target_inner, long long ignore_index, int each) {
  __shared__ COMPUTED scratch[8];
  const Targets targets(target, weight, ignore_index, 0, n);
  COMPUTED total = 0, count = 0;
  for (int i = threadIdx.x; i < each; i += blockDim.x) {
    const long long row = (long long)blockIdx.x * each + i;
    if (row >= rows) break;
    total += losses[row];
    if (counts) {
#if INDEXED
      const Class of(targets, target + row / inner * target_outer + row % inner * target_inner, n);
      if (of.counts) count += of.weight;
#else
      count += 1;
#endif
    }
  }
  total = over_group(total, Sum(), 256, scratch);
  if (counts) count = over_group(count, Sum(), 256, scratch);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = total;
    if (counts) counts[blockIdx.x] = count;
  }
}

// The sum of these sums, for the mean divided by that of the counts.
extern "C" __global__ void __launch_bounds__(256) finish_loss(
    const COMPUTED* __restrict__ sums,    // (parts,), read
    const COMPUTED* __restrict__ counts,  // (parts,), or null, read
    STORAGE* __restrict__ loss,           // one number, written
    COMPUTED* __restrict__ divisor,       // one number, written, or null
    int parts) {
  __shared__ COMPUTED scratch[8];
  const bool here = threadIdx.x < parts;
  COMPUTED total = over_group(here ? sums[threadIdx.x] : COMPUTED(0), Sum(), 256, scratch);
  if (counts) {
    const COMPUTED count = over_group(here ? counts[threadIdx.x] : COMPUTED(0), Sum(), 256, scratch);
    total /= count;
    if (divisor && threadIdx.x == 0) *divisor = count;
  }
  if (threadIdx.x == 0) *loss = narrow<STORAGE>(total);
}
