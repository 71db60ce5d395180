// The functions that kernels may call on the CPU. One that is missing here is an error of the compiler, never a wrong
// answer: add it. Fast intrinsics (__expf) are as exact as the C library's functions, which the GPU's are not.
#pragma once

#define CUDA_CPU 1
#define threadIdx (cuda_cpu::state.current->index)
#define blockIdx (cuda_cpu::state.block)
#define blockDim (cuda_cpu::state.block_size)
#define gridDim (cuda_cpu::state.grid_size)
#define warpSize 32

// ----- barriers and warp collectives ------------------------------------------------------------------------------

#define __syncthreads() cuda_cpu::sync(__LINE__)
#define __syncthreads_count(predicate) ((int)cuda_cpu::sync(__LINE__, !!(predicate)))
#define __syncthreads_or(predicate) (cuda_cpu::sync(__LINE__, !!(predicate)) != 0)
#define __syncthreads_and(predicate) (cuda_cpu::sync(__LINE__, !(predicate)) == 0)
#define __syncwarp(...) cuda_cpu::collective(cuda_cpu::mask_of(__VA_ARGS__), 0, cuda_cpu::SYNC, __LINE__)
#define __shfl_sync(mask, value, lane, ...) cuda_cpu::shuffle(mask, value, lane, __LINE__, ##__VA_ARGS__)
#define __shfl_xor_sync(mask, value, bits, ...) cuda_cpu::shuffle_xor(mask, value, bits, __LINE__, ##__VA_ARGS__)
#define __shfl_up_sync(mask, value, by, ...) cuda_cpu::shuffle_by(mask, value, -(int)(by), __LINE__, ##__VA_ARGS__)
#define __shfl_down_sync(mask, value, by, ...) cuda_cpu::shuffle_by(mask, value, (int)(by), __LINE__, ##__VA_ARGS__)
#define __ballot_sync(mask, predicate) \
  ((unsigned)cuda_cpu::collective(mask, !!(predicate), cuda_cpu::BALLOT, __LINE__))
#define __any_sync(mask, predicate) (__ballot_sync(mask, predicate) != 0)
#define __all_sync(mask, predicate) (__ballot_sync(mask, !(predicate)) == 0)

namespace cuda_cpu {
inline unsigned mask_of(unsigned mask = 0xffffffffu) { return mask; }
template <class T> CUDA_CPU_RAW T exchanged(unsigned mask, T value, int source, int line) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = collective(mask, bits, source, line);
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T> CUDA_CPU_RAW T shuffle(unsigned mask, T value, int lane, int line, int width = 32) {
  int mine = state.current->lane;
  return exchanged(mask, value, (mine & ~(width - 1)) + (lane & (width - 1)), line);
}
template <class T> CUDA_CPU_RAW T shuffle_xor(unsigned mask, T value, int bits, int line, int width = 32) {
  int mine = state.current->lane, other = mine ^ bits;
  return exchanged(mask, value, other < (mine & ~(width - 1)) + width ? other : mine, line);
}
template <class T> CUDA_CPU_RAW T shuffle_by(unsigned mask, T value, int by, int line, int width = 32) {
  int mine = state.current->lane, place = (mine & (width - 1)) + by;
  return exchanged(mask, value, 0 <= place && place < width ? mine + by : mine, line);
}
}  // namespace cuda_cpu

// ----- memory -----------------------------------------------------------------------------------------------------

inline void __threadfence() {}
inline void __threadfence_block() {}

#define CUDA_CPU_ATOMIC(name, result)                                                                             \
  template <class T, class U> CUDA_CPU_RAW __attribute__((noinline)) T name(T* p, U operand) {                    \
    T v = (T)operand;                                                                                             \
    cuda_cpu::touch((uintptr_t)p, sizeof(T), true, true, (uintptr_t)__builtin_return_address(0));                 \
    T old = *p;                                                                                                   \
    *p = (result);                                                                                                \
    return old;                                                                                                   \
  }
CUDA_CPU_ATOMIC(atomicAdd, T(old + v))
CUDA_CPU_ATOMIC(atomicSub, T(old - v))
CUDA_CPU_ATOMIC(atomicMax, old < v ? v : old)
CUDA_CPU_ATOMIC(atomicMin, v < old ? v : old)
CUDA_CPU_ATOMIC(atomicExch, v)
CUDA_CPU_ATOMIC(atomicOr, T(old | v))
CUDA_CPU_ATOMIC(atomicAnd, T(old & v))
template <class T> CUDA_CPU_RAW __attribute__((noinline)) T atomicCAS(T* p, T expected, T wanted) {
  cuda_cpu::touch((uintptr_t)p, sizeof(T), true, true, (uintptr_t)__builtin_return_address(0));
  T old = *p;
  if (old == expected) *p = wanted;
  return old;
}

template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline void __stcs(T* p, T v) { *p = v; }
template <class T> inline void __stcg(T* p, T v) { *p = v; }

// ----- numbers ----------------------------------------------------------------------------------------------------

template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return (C)std::fmin((C)a, (C)b);
  else return C(b) < C(a) ? C(b) : C(a);
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return (C)std::fmax((C)a, (C)b);
  else return C(a) < C(b) ? C(b) : C(a);
}

inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __tanhf(float x) { return tanhf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.f) : 0.f; }
// volatile: these are rounded by themselves, never part of a fused multiply-add.
inline float __fadd_rn(float a, float b) { volatile float r = a + b; return r; }
inline float __fsub_rn(float a, float b) { volatile float r = a - b; return r; }
inline float __fmul_rn(float a, float b) { volatile float r = a * b; return r; }
inline double __dadd_rn(double a, double b) { volatile double r = a + b; return r; }
inline double __dmul_rn(double a, double b) { volatile double r = a * b; return r; }

template <class To, class From> inline To cuda_cpu_bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To r;
  memcpy(&r, &x, sizeof r);
  return r;
}
inline int __float_as_int(float x) { return cuda_cpu_bits<int>(x); }
inline float __int_as_float(int x) { return cuda_cpu_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return cuda_cpu_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return cuda_cpu_bits<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_cpu_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_cpu_bits<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned __int128)a * b >> 64;
}

inline void __trap() { cuda_cpu::fault("__trap()"); }
#undef assert
#define assert(condition) ((condition) ? (void)0 : cuda_cpu::fault("line %d: assert(%s)", __LINE__, #condition))
