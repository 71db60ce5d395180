// embedding: rows looked up and shortened, their gradients added up in order without atomics.
//
// Constants: see runtime/cuda/rows.cuh (nothing is kept); NAMED: the type of indices. An index that is no row of weight
// is never used as an address; its row is NaN. Half precision is computed in float. All arrays are the caller's.
#include "runtime/cuda/rows.cuh"

// Rows that indices name, a thread VECTOR columns of one.
extern "C" __global__ void __launch_bounds__(256, 1) gather_rows(
    const STORAGE* __restrict__ weight,    // (rows, n), read
    const NAMED* __restrict__ indices,     // (places,), contiguous, read
    const COMPUTED* __restrict__ factors,  // (places,): of each row, or null, read
    STORAGE* __restrict__ out,             // (places, n), contiguous, written
    long long places, long long rows, int n, long long weight_row, long long weight_n) {
  const long long item = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  const int across = n / VECTOR;
  const long long place = item / across;
  if (place >= places) return;
  const int c = item % across * VECTOR;
  const long long row = indices[place];
  COMPUTED values[VECTOR];
  if (row >= 0 && row < rows) load_part(weight + row * weight_row, weight_n, c, n, COMPUTED(0), values);
  else fill(values, not_a_number<COMPUTED>());
  if (factors) {
    const COMPUTED factor = factors[place];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) values[v] *= factor;
  }
  store_part(out + place * n, c, n, values);
}

// min(1, largest / norm) of the rows that indices name.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) factors_of_rows(
    const STORAGE* __restrict__ weight,  // (rows, n), read
    const NAMED* __restrict__ indices,   // (places,), contiguous, read
    COMPUTED* __restrict__ factors,      // (places,), written
    long long places, long long rows, int n, long long weight_row, long long weight_n,
    double largest, double kind,  // the norm's number: 1, 2, any other above 0, infinity
    int group) {
  __shared__ double scratch[ROW_THREADS / 32];
  const RowPlace at(group);
  const long long row = at.row < places ? (long long)indices[at.row] : -1;
  const int size = row >= 0 && row < rows ? n : 0;
  const bool endless = isinf(kind);
  double total = 0;
  bool nan = false;
  for (int i = at.lane * VECTOR; i < size; i += group * VECTOR) {
    COMPUTED part[VECTOR];
    load_part(weight + row * weight_row, weight_n, i, size, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      const double found = fabs((double)part[v]);
      nan |= isnan(found);
      if (endless) total = fmax(total, found);
      else total += kind == 2 ? found * found : kind == 1 ? found : pow(found, kind);
    }
  }
  if (endless) {
    total = over_group(total, Maximum(), group, scratch);
    if (over_group(nan ? 1.0 : 0.0, Maximum(), group, scratch) > 0) total = not_a_number<double>();
  } else {
    total = over_group(total, Sum(), group, scratch);
    total = kind == 2 ? sqrt(total) : kind == 1 ? total : pow(total, 1 / kind);
  }
  if (at.lane == 0 && at.row < places) factors[at.row] = total > largest ? COMPUTED(largest / (total + 1e-7)) : COMPUTED(1);
}

// Where in `order` the places of each row begin: bounds[r] is the first whose index is at least r.
extern "C" __global__ void __launch_bounds__(256, 1) bounds_of_rows(
    const NAMED* __restrict__ indices,    // (places,), contiguous, read
    const long long* __restrict__ order,  // (places,): the places by their indices, read
    long long* __restrict__ bounds,       // (rows + 1,), written
    long long places, long long rows) {
  const long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (row > rows) return;
  long long low = 0, high = places;
  while (low < high) {
    const long long middle = (low + high) / 2;
    if (indices[order[middle]] < row) low = middle + 1;
    else high = middle;
  }
  bounds[row] = low;
}

// For each row the sum of the gradients at its places, always in the same order. Blocks: (columns, then rows); a block
// has blockDim.x threads across VECTOR columns each, and blockDim.y places at a time.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1) add_rows(
    const STORAGE* __restrict__ grad,      // (places, n), read
    const long long* __restrict__ order,   // (places,), see bounds_of_rows, read
    const long long* __restrict__ bounds,  // (rows + 1,), read
    STORAGE* __restrict__ out,             // (rows, n), contiguous, written
    int n, long long grad_place, long long grad_n,
    long long padding,  // a row whose sum is 0; -1 for none
    bool by_count) {    // divided by how many places there are
  extern __shared__ COMPUTED scratch[];
  const int across = (n + blockDim.x * VECTOR - 1) / (blockDim.x * VECTOR);
  const long long row = blockIdx.x / across;
  const int c = (blockIdx.x % across * blockDim.x + threadIdx.x) * VECTOR;
  const long long begin = bounds[row], end = row == padding ? begin : bounds[row + 1];
  COMPUTED total[VECTOR], part[VECTOR];
  fill(total, COMPUTED(0));
  for (long long i = begin + threadIdx.y; i < end; i += blockDim.y) {
    load_part(grad + order[i] * grad_place, grad_n, c, n, COMPUTED(0), part);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) total[v] += part[v];
  }
  over_column(total, Sum(), scratch);
  if (threadIdx.y > 0) return;
  if (by_count && end > begin) {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) total[v] /= (COMPUTED)(end - begin);
  }
  store_part(out + row * n, c, n, total);
}
