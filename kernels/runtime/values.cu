// The values of a call (indices, lengths) looked at on the GPU; what is wrong goes to a report on the host.
//
// Constants: VALUE (type of the values), THREADS (of a block).

// report [3][gridDim.x's most]: the call's number, position and value of the first wrong one of `each` values in turn,
// for each block. Values: `total` in rows of `columns`, with strides of theirs. Right are those from least to greatest,
// and ignored where ignores. What an earlier call left stays. Both are the caller's; report lies in the host's memory,
// and is touched only where something is wrong.
extern "C" __global__ void __launch_bounds__(THREADS) find_wrong_values(
    const VALUE* __restrict__ values, long long* report, int most, long long total, long long columns,
    long long row_stride, long long column_stride, long long each, long long least, long long greatest,
    bool ignores, long long ignored, long long call) {
  __shared__ long long firsts[THREADS];
  const long long begin = blockIdx.x * each;
  const long long end = begin + each < total ? begin + each : total;
  long long first = end;
  for (long long i = begin + threadIdx.x; i < end && first == end; i += THREADS) {
    const long long value = values[i / columns * row_stride + i % columns * column_stride];
    if ((value < least || value > greatest) && !(ignores && value == ignored)) first = i;
  }
  firsts[threadIdx.x] = first;
  if (!__syncthreads_or(first != end)) return;
  if (threadIdx.x != 0) return;
  for (int t = 1; t < THREADS; ++t)
    if (firsts[t] < first) first = firsts[t];
  if (report[blockIdx.x] != 0) return;
  report[blockIdx.x + most] = first;
  report[blockIdx.x + 2 * most] = values[first / columns * row_stride + first % columns * column_stride];
  report[blockIdx.x] = call;
}
