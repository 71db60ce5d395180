// layer_norm and rms_norm. Constants: see runtime/cuda/rows.cuh; STEPS = 0 where a row does not stay in registers;
// CENTRED: 0 takes the mean of a row for 0. Half precision is computed in float. Rows are (rows, n). All arrays are the
// caller's.
#include "runtime/cuda/rows.cuh"

#define KEPT (STEPS > 0 ? STEPS : 1)

// VECTOR elements of weight or bias (n,), contiguous, from `first` on; `other` where there is none.
__device__ __forceinline__ void load_factors(
    const STORAGE* p, int first, int n, COMPUTED other, COMPUTED (&values)[VECTOR]) {
  if (p) load_part(p, 1, first, n, COMPUTED(0), values);
  else fill(values, other);
}

__device__ __forceinline__ void store_normalised(
    STORAGE* to, const STORAGE* weight, const STORAGE* bias, int i, int n, COMPUTED scale, COMPUTED (&apart)[VECTOR]) {
  COMPUTED weights[VECTOR], biases[VECTOR];
  load_factors(weight, i, n, 1, weights);
  load_factors(bias, i, n, 0, biases);
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) apart[v] = apart[v] * scale * weights[v] + biases[v];
  store_part(to, i, n, apart);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) normalise_rows(
    const STORAGE* __restrict__ x,       // (rows, n), read
    const STORAGE* __restrict__ weight,  // (n,), contiguous, or null, read
    const STORAGE* __restrict__ bias,    // (n,), contiguous, or null, read
    STORAGE* __restrict__ out,           // (rows, n), contiguous: (x - mean) * scale * weight + bias, written
    COMPUTED* __restrict__ means,        // (rows,), written, or null
    COMPUTED* __restrict__ scales,       // (rows,): 1 / sqrt(variance + eps), written, or null
    long long rows, int n, long long x_row, long long x_n, COMPUTED eps, int group) {
  __shared__ COMPUTED scratch[ROW_THREADS / 32];
  const RowPlace at(group);
  const int size = at.row < rows ? n : 0;
  const STORAGE* from = x + at.row * x_row;
  STORAGE* to = out + at.row * n;
  // The mean, and what it lacks by rounding (Chan, Golub and LeVeque, 1983).
  COMPUTED mean = 0, lost = 0, squares = 0;
#if STEPS > 0
  COMPUTED apart[STEPS][VECTOR];
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    load_part(from, x_n, (s * group + at.lane) * VECTOR, size, COMPUTED(0), apart[s]);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) mean += apart[s][v];
  }
#if CENTRED
  mean = over_group(mean, Sum(), group, scratch) / n;
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    const bool inside = (s * group + at.lane) * VECTOR < size;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      apart[s][v] = inside ? apart[s][v] - mean : COMPUTED(0);
      lost += apart[s][v];
    }
  }
  lost = over_group(lost, Sum(), group, scratch) / n;
#else
  mean = 0;
#endif
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    const bool inside = (s * group + at.lane) * VECTOR < size;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      if (CENTRED && inside) apart[s][v] -= lost;
      squares += apart[s][v] * apart[s][v];
    }
  }
  squares = over_group(squares, Sum(), group, scratch);
#else
  COMPUTED part[VECTOR];
#if CENTRED
  for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
    load_part(from, x_n, i, size, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) mean += part[v];
  }
  mean = over_group(mean, Sum(), group, scratch) / n;
#endif
  for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
    load_part(from, x_n, i, size, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      const COMPUTED apart = part[v] - mean;
      lost += apart;
      squares += apart * apart;
    }
  }
  squares = over_group(squares, Sum(), group, scratch);
#if CENTRED
  lost = over_group(lost, Sum(), group, scratch) / n;
  const COMPUTED less = squares - lost * lost * n;
  squares = less < 0 ? COMPUTED(0) : less;  // NaN stays
#else
  lost = 0;
#endif
#endif
  const COMPUTED scale = 1 / sqrt(squares / n + eps);
  if (scales && at.lane == 0 && size) {
    scales[at.row] = scale;
    if (CENTRED) means[at.row] = mean + lost;
  }
#if STEPS > 0
#pragma unroll
  for (int s = 0; s < STEPS; ++s)
    store_normalised(to, weight, bias, (s * group + at.lane) * VECTOR, size, scale, apart[s]);
#else
  for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
    load_part(from, x_n, i, size, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) part[v] = part[v] - mean - lost;
    store_normalised(to, weight, bias, i, size, scale, part);
  }
#endif
}

// What of a row's elements backward needs: the gradient times the weight, and the normalised number.
struct Terms {
  COMPUTED grad[VECTOR], normal[VECTOR];
  __device__ __forceinline__ void load(
      const STORAGE* grad_row, long long grad_n, const STORAGE* x_row, long long x_n, const STORAGE* weight, int i, int n,
      COMPUTED mean, COMPUTED scale) {
    COMPUTED weights[VECTOR];
    load_part(grad_row, grad_n, i, n, COMPUTED(0), grad);
    load_part(x_row, x_n, i, n, COMPUTED(0), normal);
    load_factors(weight, i, n, 1, weights);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      grad[v] *= weights[v];
      normal[v] = i < n ? (normal[v] - mean) * scale : COMPUTED(0);
    }
  }
  __device__ __forceinline__ void add(COMPUTED& along, COMPUTED& level) const {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      along += grad[v] * normal[v];
      level += grad[v];
    }
  }
  __device__ __forceinline__ void store(
      STORAGE* to, int i, int n, COMPUTED along, COMPUTED level, COMPUTED scale) {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) grad[v] = (grad[v] - normal[v] * along - level) * scale;
    store_part(to, i, n, grad);
  }
};

// The sums of a part lie in pieces of at most 16 bytes: the first piece of every VECTOR columns, then the second ones, so
// that neighbouring threads write, and read, neighbours.
#define PIECE (VECTOR * sizeof(COMPUTED) > 16 ? int(16 / sizeof(COMPUTED)) : VECTOR)
__device__ __forceinline__ int place_of_piece(int c, int first, int n) {
  return (first / PIECE * (n / VECTOR) + c / VECTOR) * PIECE;
}

// VECTOR sums of columns from c on, of a part at p (n,).
__device__ __forceinline__ void store_sums(COMPUTED* p, int c, int n, const COMPUTED (&sums)[VECTOR]) {
#pragma unroll
  for (int first = 0; first < VECTOR; first += PIECE) {
    COMPUTED piece[PIECE];
#pragma unroll
    for (int i = 0; i < PIECE; ++i) piece[i] = sums[first + i];
    store_vector(p + place_of_piece(c, first, n), piece);
  }
}

// The sums of all groups of a block together, always in the same order, written to p (n,).
__device__ __forceinline__ void store_over_groups(
    COMPUTED (&sums)[KEPT][VECTOR], COMPUTED* p, int n, int group, COMPUTED* of_groups) {
  const int groups = blockDim.x / group, mine = threadIdx.x / group, lane = threadIdx.x & (group - 1);
  if (groups > 1) {
    __syncthreads();  // what was there has been read
#pragma unroll
    for (int s = 0; s < KEPT; ++s) {
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) of_groups[((s * VECTOR + v) * groups + mine) * group + lane] = sums[s][v];
    }
    __syncthreads();
  }
  if (mine > 0) return;
#pragma unroll
  for (int s = 0; s < KEPT; ++s) {
    for (int other = 1; other < groups; ++other) {
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) sums[s][v] += of_groups[((s * VECTOR + v) * groups + other) * group + lane];
    }
    const int i = (s * group + lane) * VECTOR;
    if (i < n) store_sums(p, i, n, sums[s]);
  }
}

// The gradient of x of `part` rows in turn, and what they give to the gradients of weight and bias, always added in the
// same order. A block for each part; rows stay in registers: launched where STEPS > 0.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) gradients_of_parts(
    const STORAGE* __restrict__ grad,     // (rows, n), of the output, read
    const STORAGE* __restrict__ x,        // (rows, n), read
    const STORAGE* __restrict__ weight,   // (n,), contiguous, or null, read
    const COMPUTED* __restrict__ means,   // (rows,), of forward, or null, read
    const COMPUTED* __restrict__ scales,  // (rows,), of forward, read
    STORAGE* __restrict__ grad_x,         // (rows, n), contiguous, written, or null
    COMPUTED* __restrict__ of_weight,     // (parts, n) in pieces, written, or null
    COMPUTED* __restrict__ of_bias,       // (parts, n) in pieces, written, or null
    long long rows, int n, int part, long long grad_row, long long grad_n, long long x_row, long long x_n, int group) {
  __shared__ COMPUTED scratch[ROW_THREADS / 32];
  extern __shared__ COMPUTED of_groups[];  // KEPT * VECTOR numbers of each thread
  const int groups = blockDim.x / group, mine = threadIdx.x / group, lane = threadIdx.x & (group - 1);
  COMPUTED weights[KEPT][VECTOR], weight_sum[KEPT][VECTOR], bias_sum[KEPT][VECTOR];
#pragma unroll
  for (int s = 0; s < KEPT; ++s) {
    load_factors(weight, (s * group + lane) * VECTOR, n, 1, weights[s]);
    fill(weight_sum[s], COMPUTED(0));
    fill(bias_sum[s], COMPUTED(0));
  }
  for (int first = 0; first < part; first += groups) {
    const long long row = (long long)blockIdx.x * part + first + mine;
    const bool exists = first + mine < part && row < rows;
    const int size = exists ? n : 0;
    const COMPUTED scale = exists ? scales[row] : COMPUTED(0);
    const COMPUTED mean = CENTRED && exists ? means[row] : COMPUTED(0);
    COMPUTED g[KEPT][VECTOR], normal[KEPT][VECTOR], along = 0, level = 0;
#pragma unroll
    for (int s = 0; s < KEPT; ++s) {
      const int i = (s * group + lane) * VECTOR;
      load_part(grad + row * grad_row, grad_n, i, size, COMPUTED(0), g[s]);
      load_part(x + row * x_row, x_n, i, size, COMPUTED(0), normal[s]);
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) {
        normal[s][v] = i < size ? (normal[s][v] - mean) * scale : COMPUTED(0);
        weight_sum[s][v] += g[s][v] * normal[s][v];
        bias_sum[s][v] += g[s][v];
        g[s][v] *= weights[s][v];
        along += g[s][v] * normal[s][v];
        level += g[s][v];
      }
    }
    if (!grad_x) continue;
    along = over_group(along, Sum(), group, scratch) / n;
    level = CENTRED ? over_group(level, Sum(), group, scratch) / n : COMPUTED(0);
#pragma unroll
    for (int s = 0; s < KEPT; ++s) {
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) g[s][v] = (g[s][v] - normal[s][v] * along - level) * scale;
      store_part(grad_x + row * n, (s * group + lane) * VECTOR, size, g[s]);
    }
  }
  if (of_weight) store_over_groups(weight_sum, of_weight + (long long)blockIdx.x * n, n, group, of_groups);
  if (of_bias) store_over_groups(bias_sum, of_bias + (long long)blockIdx.x * n, n, group, of_groups);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) gradient_of_rows(
    const STORAGE* __restrict__ grad,     // (rows, n), of the output, read
    const STORAGE* __restrict__ x,        // (rows, n), read
    const STORAGE* __restrict__ weight,   // (n,), contiguous, or null, read
    const COMPUTED* __restrict__ means,   // (rows,), of forward, or null, read
    const COMPUTED* __restrict__ scales,  // (rows,), of forward, read
    STORAGE* __restrict__ grad_x,         // (rows, n), contiguous, written
    long long rows, int n, long long grad_row, long long grad_n, long long x_row, long long x_n, int group) {
  __shared__ COMPUTED scratch[ROW_THREADS / 32];
  const RowPlace at(group);
  const bool exists = at.row < rows;
  const int size = exists ? n : 0;
  const STORAGE *from_grad = grad + at.row * grad_row, *from_x = x + at.row * x_row;
  STORAGE* to = grad_x + at.row * n;
  const COMPUTED scale = exists ? scales[at.row] : COMPUTED(0);
  const COMPUTED mean = CENTRED && exists ? means[at.row] : COMPUTED(0);
  COMPUTED along = 0, level = 0;
#if STEPS > 0
  Terms terms[STEPS];
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    terms[s].load(from_grad, grad_n, from_x, x_n, weight, (s * group + at.lane) * VECTOR, size, mean, scale);
    terms[s].add(along, level);
  }
#else
  Terms terms;
  for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
    terms.load(from_grad, grad_n, from_x, x_n, weight, i, size, mean, scale);
    terms.add(along, level);
  }
#endif
  along = over_group(along, Sum(), group, scratch) / n;
#if CENTRED
  level = over_group(level, Sum(), group, scratch) / n;
#else
  level = 0;
#endif
#if STEPS > 0
#pragma unroll
  for (int s = 0; s < STEPS; ++s) terms[s].store(to, (s * group + at.lane) * VECTOR, size, along, level, scale);
#else
  for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
    terms.load(from_grad, grad_n, from_x, x_n, weight, i, size, mean, scale);
    terms.store(to, i, size, along, level, scale);
  }
#endif
}

// What `part` rows in turn give to the gradients of weight and bias. Blocks: (columns, parts); a block has blockDim.x
// threads across VECTOR columns each, and blockDim.y rows at a time, always added in the same order.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) sums_of_columns(
    const STORAGE* __restrict__ grad,     // (rows, n), of the output, read
    const STORAGE* __restrict__ x,        // (rows, n), read
    const COMPUTED* __restrict__ means,   // (rows,), of forward, or null, read
    const COMPUTED* __restrict__ scales,  // (rows,), of forward, read
    COMPUTED* __restrict__ of_weight,     // (parts, n) in pieces, written, or null
    COMPUTED* __restrict__ of_bias,       // (parts, n) in pieces, written, or null
    long long rows, int n, int part, long long grad_row, long long grad_n, long long x_row, long long x_n) {
  extern __shared__ COMPUTED scratch[];
  const int c = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
  const long long begin = (long long)blockIdx.y * part, end = min(rows, begin + part);
  COMPUTED weights[VECTOR], biases[VECTOR], g[VECTOR], normal[VECTOR];
  fill(weights, COMPUTED(0));
  fill(biases, COMPUTED(0));
  for (long long row = begin + threadIdx.y; row < end; row += blockDim.y) {
    load_part(grad + row * grad_row, grad_n, c, n, COMPUTED(0), g);
    if (of_weight) {
      load_part(x + row * x_row, x_n, c, n, COMPUTED(0), normal);
      const COMPUTED scale = scales[row], mean = CENTRED ? means[row] : COMPUTED(0);
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) weights[v] += g[v] * ((normal[v] - mean) * scale);
    }
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) biases[v] += g[v];
  }
  if (of_weight) over_column(weights, Sum(), scratch);
  if (of_bias) over_column(biases, Sum(), scratch);
  if (threadIdx.y == 0 && c < n) {
    if (of_weight) store_sums(of_weight + (long long)blockIdx.y * n, c, n, weights);
    if (of_bias) store_sums(of_bias + (long long)blockIdx.y * n, c, n, biases);
  }
}

// The sums over the parts, always in the same order. A block has blockDim.x threads across VECTOR columns each, and
// blockDim.y parts at a time.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) sum_parts(
    const COMPUTED* __restrict__ of_parts,  // (parts, n) in pieces, read
    STORAGE* __restrict__ out,              // (n,), written
    int parts, int n) {
  extern __shared__ COMPUTED scratch[];
  const int c = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
  COMPUTED total[VECTOR], piece[PIECE];
  fill(total, COMPUTED(0));
  for (int i = threadIdx.y; i < parts && c < n; i += blockDim.y) {
#pragma unroll
    for (int first = 0; first < VECTOR; first += PIECE) {
      load_vector(of_parts + (long long)i * n + place_of_piece(c, first, n), piece);
#pragma unroll
      for (int v = 0; v < PIECE; ++v) total[first + v] += piece[v];
    }
  }
  over_column(total, Sum(), scratch);
  if (threadIdx.y == 0) store_part(out, c, n, total);
}
