// dropout: the counter-based mask of kernels.random, made where it is needed. A thread has VECTOR neighbours of the
// result, a multiple of the 4 that share a block of the generator.
//
// Constants: STORAGE, COMPUTED: types of numbers in memory and in registers; VECTOR; WIDE: x lies as the result does, and
// aligned, so that a thread reads its elements at once. All arrays are the caller's.
#include "runtime/cuda/philox.cuh"
#include "runtime/cuda/types.cuh"

extern "C" __global__ void __launch_bounds__(256, 1) drop_elements(
    const STORAGE* __restrict__ x,       // `size` elements, counted in four dimensions, read
    const long long* __restrict__ seed,  // one number, read
    STORAGE* __restrict__ out,           // (size,), contiguous: x * kept where it is kept, else 0; written
    long long size,
    long long n1, long long n2, long long n3,                // extents of the last three dimensions
    long long x0, long long x1, long long x2, long long x3,  // strides of x in the four; not read where WIDE
    unsigned long long threshold,                            // words below it are dropped
    unsigned long long stream, COMPUTED kept) {
  const long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
  if (first >= size) return;
  const bool whole = first + VECTOR <= size;
  COMPUTED values[VECTOR];
  if (WIDE && whole) {
    load_vector(x + first, values);
  } else {
    for (int v = 0; v < VECTOR; ++v) {
      long long i = first + v;
      values[v] = 0;
      if (i >= size) continue;
      if (!WIDE) {
        const long long d = i % n3, c = i / n3 % n2, b = i / n3 / n2 % n1;
        i = i / n3 / n2 / n1 * x0 + b * x1 + c * x2 + d * x3;
      }
      values[v] = widen(x[i]);
    }
  }
#pragma unroll
  for (int block = 0; block < VECTOR / 4; ++block) {
    unsigned words[4];
    philox_block((unsigned long long)*seed, (unsigned long long)first / 4 + block, stream, words);
    // A dropped NaN is 0.
#pragma unroll
    for (int w = 0; w < 4; ++w)
      values[4 * block + w] = words[w] >= threshold ? values[4 * block + w] * kept : COMPUTED(0);
  }
  if (whole) {
    store_vector(out + first, values);
  } else {
    for (int v = 0; v < VECTOR && first + v < size; ++v) out[first + v] = narrow<STORAGE>(values[v]);
  }
}
