// cross_entropy along the rows: the loss of every row, their sum, and the gradients. Constants: see targets.cuh; nothing is
// kept in registers. All arrays are the caller's.
#include "softmax/targets.cuh"

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
