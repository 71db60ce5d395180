// Fragments of tensor cores (wmma), from shared memory.
#pragma once
#include <mma.h>

#include "runtime/cuda/types.cuh"

// A fragment from shared memory. For bfloat16 the compiler does not see that the address is there, and would read word
// by word; so PTX says it, which is otherwise what load_matrix_sync does.
template <class Fragment, class T> __device__ __forceinline__ void load_shared(Fragment& f, const T* from, int pitch) {
  nvcuda::wmma::load_matrix_sync(f, from, pitch);
}
#ifndef CUDA_CPU
#define LOAD_SHARED(USE, LETTER, LAYOUT, WORD)                                                                       \
  __device__ __forceinline__ void load_shared(                                                                       \
      nvcuda::wmma::fragment<nvcuda::wmma::USE, 16, 16, 16, __nv_bfloat16, nvcuda::wmma::LAYOUT>& f,                 \
      const __nv_bfloat16* from, int pitch) {                                                                        \
    unsigned* words = reinterpret_cast<unsigned*>(f.x);                                                              \
    asm volatile("wmma.load." LETTER ".sync.aligned." WORD ".m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;"      \
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])                                    \
                 : "r"((unsigned)__cvta_generic_to_shared(from)), "r"(pitch)                                         \
                 : "memory");                                                                                        \
  }
LOAD_SHARED(matrix_a, "a", row_major, "row")
LOAD_SHARED(matrix_a, "a", col_major, "col")
LOAD_SHARED(matrix_b, "b", row_major, "row")
LOAD_SHARED(matrix_b, "b", col_major, "col")
#undef LOAD_SHARED
#endif
