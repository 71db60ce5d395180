// Tensor cores by PTX, with the registers where its manual says: a product of a warp (mma.sync), and its factors out of
// shared memory (ldmatrix). T is __half or __nv_bfloat16. A lane has row or column `lane / 4` and neighbours from
// `2 (lane % 4)` on of every 8 x 8 part.
#pragma once
#include "runtime/cuda/types.cuh"
#ifdef CUDA_CPU
#include <mma.h>
#endif

// sums (16, 8) += a (16, 16) . b (16, 8). Parts of 8 x 8: of a (0, 0), (8, 0), (0, 8), (8, 8); of b (0, 0), (8, 0); of
// the sums two numbers of each of (0, 0), (8, 0).
template <class T> struct TensorCores;
#ifdef CUDA_CPU
template <class T> struct TensorCores {
  static __device__ void add(float (&sums)[4], const uint4& a, unsigned b0, unsigned b1) {
    const uint32_t left[4] = {a.x, a.y, a.z, a.w}, right[2] = {b0, b1};
    cuda_cpu_mma_m16n8k16<T>(sums, left, right, sums);
  }
};
#else
#define TENSOR_CORES_OF(T, NAME)                                                                                  \
  template <> struct TensorCores<T> {                                                                             \
    static __device__ __forceinline__ void add(float (&sums)[4], const uint4& a, unsigned b0, unsigned b1) {      \
      asm("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "   \
          "{%0,%1,%2,%3};"                                                                                        \
          : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                            \
          : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));                                            \
    }                                                                                                             \
  };
TENSOR_CORES_OF(__half, "f16")
TENSOR_CORES_OF(__nv_bfloat16, "bf16")
#undef TENSOR_CORES_OF
#endif

// Four parts of 8 x 8 numbers of shared memory: lane 8 i + r says where row r of part i lies, 16 bytes. TRANSPOSED: each
// part is.
template <bool TRANSPOSED, class T> __device__ __forceinline__ uint4 load_matrices(const T* row) {
  uint4 found;
#ifdef CUDA_CPU
  cuda_cpu_ldmatrix<TRANSPOSED>(found, row);
#else
  const unsigned from = (unsigned)__cvta_generic_to_shared(row);
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w) : "r"(from) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w) : "r"(from) : "memory");
#endif
  return found;
}
