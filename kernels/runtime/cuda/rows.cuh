// What kernels share that work on rows by themselves, of arrays seen as (outer, n, inner): where a thread's elements are,
// and sums and maxima over the threads of a row. The Python side is kernels/runtime/row_blocks.py.
//
// Constants: STORAGE, COMPUTED: types of numbers in memory and in registers. VECTOR: neighbours in memory that a thread
// reads and writes at once; it divides n (rows) or inner (columns). STEPS: vectors of a row that a thread keeps.
#pragma once
#include "runtime/cuda/types.cuh"

#define ROW_THREADS 512  // of a block at most

// -inf, which NVRTC has no name for.
template <class T> __device__ __forceinline__ T negative_infinity();
template <> __device__ __forceinline__ float negative_infinity() { return __int_as_float(0xff800000); }
template <> __device__ __forceinline__ double negative_infinity() { return __longlong_as_double(0xfff0000000000000ll); }

template <class T> __device__ __forceinline__ T not_a_number();
template <> __device__ __forceinline__ float not_a_number() { return __int_as_float(0x7fc00000); }
template <> __device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }

struct Sum {
  template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};
// Of a number and NaN the number.
struct Maximum {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
  __device__ __forceinline__ double operator()(double a, double b) const { return fmax(a, b); }
};

template <class T, int N> __device__ __forceinline__ void fill(T (&values)[N], T number) {
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = number;
}

// ----- rows: `group` neighbouring threads have one, all of a block's rows lie behind each other --------------------

// The thread's place in its row, and its row. group: a power of two that divides the block.
struct RowPlace {
  int lane;
  long long row;
  __device__ __forceinline__ RowPlace(int group)
      : lane(threadIdx.x & (group - 1)), row((long long)blockIdx.x * (blockDim.x / group) + threadIdx.x / group) {}
};

// VECTOR elements from `first` on of a row at p, `step` apart (1 where VECTOR > 1); `fill` behind the end at n.
template <class T>
__device__ __forceinline__ void load_part(
    const STORAGE* p, long long step, int first, int n, T fill, T (&values)[VECTOR]) {
  if (first < n) {
#if VECTOR > 1
    load_vector(p + first, values);
#else
    values[0] = widen(p[first * step]);
#endif
  } else {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) values[v] = fill;
  }
}

// The same places of a contiguous row written.
template <class T>
__device__ __forceinline__ void store_part(STORAGE* p, int first, int n, const T (&values)[VECTOR]) {
  if (first < n) {
#if VECTOR > 1
    store_vector(p + first, values);
#else
    p[first] = narrow<STORAGE>(values[0]);
#endif
  }
}

// x of all threads of a group combined, in every one of them, always in the same order. Every thread of the block calls
// it. scratch: shared memory for a number of each warp.
template <class T, class Operation>
__device__ __forceinline__ T over_group(T x, Operation operation, int group, T* scratch) {
  for (int offset = min(group, 32) / 2; offset > 0; offset /= 2)
    x = operation(x, __shfl_xor_sync(0xffffffffu, x, offset));
  if (group > 32) {
    const int warp = threadIdx.x / 32, warps = group / 32, first = warp & ~(warps - 1);
    __syncthreads();  // what was in scratch has been read
    if (threadIdx.x % 32 == 0) scratch[warp] = x;
    __syncthreads();
    x = scratch[first];
    for (int i = 1; i < warps; ++i) x = operation(x, scratch[first + i]);
  }
  return x;
}

// ----- columns: neighbouring threads have neighbouring rows, whose elements lie `inner` apart ----------------------

// The thread's first row of VECTOR neighbours (outer, inner), threadIdx.y is its place in them.
struct ColumnPlace {
  long long outer;
  int inner;
  __device__ __forceinline__ ColumnPlace(int size) {
    const int blocks = (size + blockDim.x * VECTOR - 1) / (blockDim.x * VECTOR);
    outer = blockIdx.x / blocks;
    inner = (blockIdx.x % blocks * blockDim.x + threadIdx.x) * VECTOR;
  }
};

// VECTOR neighbouring elements at p, if they are `inside`; else `fill`.
template <class T>
__device__ __forceinline__ void load_columns(const STORAGE* p, bool inside, T fill, T (&values)[VECTOR]) {
  load_part(p, 1, 0, inside, fill, values);
}
template <class T> __device__ __forceinline__ void store_columns(STORAGE* p, bool inside, const T (&values)[VECTOR]) {
  store_part(p, 0, inside, values);
}

// x of all threads that share a column combined, in every one of them. blockDim.y is a power of two. scratch: shared
// memory for VECTOR numbers of each thread.
template <class T, class Operation>
__device__ __forceinline__ void over_column(T (&x)[VECTOR], Operation operation, T* scratch) {
  if (blockDim.y == 1) return;
  const int threads = blockDim.x * blockDim.y, mine = threadIdx.y * blockDim.x + threadIdx.x;
  __syncthreads();  // what was in scratch has been read
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) scratch[v * threads + mine] = x[v];
  for (int half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) {
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) {
        T* p = scratch + v * threads + mine;
        *p = operation(*p, p[half * blockDim.x]);
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int v = 0; v < VECTOR; ++v) x[v] = scratch[v * threads + threadIdx.x];
}
