// Element types: numbers in memory are of a STORAGE type, and all arithmetic is in float, or in double for double.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// A computed number rounded to a STORAGE type: narrow<STORAGE>(x).
template <class T> struct Narrow;
template <> struct Narrow<float> { static __device__ __forceinline__ float of(float x) { return x; } };
template <> struct Narrow<double> { static __device__ __forceinline__ double of(double x) { return x; } };
template <> struct Narrow<__half> { static __device__ __forceinline__ __half of(float x) { return __float2half_rn(x); } };
template <> struct Narrow<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 of(float x) { return __float2bfloat16_rn(x); }
};
template <class T, class U> __device__ __forceinline__ T narrow(U x) { return Narrow<T>::of(x); }

// N neighbours in memory, read and written as one: a single access of 128 bits where they have 16 bytes.
template <class T, int N> struct __align__(sizeof(T) * N) Vector {
  T v[N];
};

// N neighbours in memory as computed numbers, in one access; p is aligned to them.
template <class T, int N, class U> __device__ __forceinline__ void load_vector(const T* p, U (&values)[N]) {
  const Vector<T, N> found = *reinterpret_cast<const Vector<T, N>*>(p);
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = widen(found.v[i]);
}

// And written, rounded to the type in memory.
template <class T, int N, class U> __device__ __forceinline__ void store_vector(T* p, const U (&values)[N]) {
  Vector<T, N> made;
#pragma unroll
  for (int i = 0; i < N; ++i) made.v[i] = narrow<T>(values[i]);
  *reinterpret_cast<Vector<T, N>*>(p) = made;
}
