// What a .cu file is compiled with for the CPU (`g++ -x c++ -include cuda_cpu.h`): CUDA's keywords, its vector and half
// types (NVIDIA's own headers), the threads of a block, barriers, and the functions of device_functions.h.
//
// The blocks of a launch run one after another. The threads of a block are fibers of one thread of the operating system;
// they change over at barriers and warp collectives alone (runtime.cpp). Compiled with -DCUDA_CPU_WATCHED and
// -fsanitize=thread, without that sanitizer's library, every access to memory calls a function of memory.cpp.
#pragma once
#include <algorithm>
#include <cmath>
#include <math.h>  // float overloads in the global namespace, as CUDA has them
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#define __forceinline__ inline
#include <vector_types.h>
#include <vector_functions.h>
#undef __shared__
#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __launch_bounds__
#undef __noinline__
#undef __align__
// The library's thread-local storage is the shared memory of the block that runs. `extern __shared__ T x[]` is rewritten
// to a pointer before the compiler sees it (module.py).
#define __shared__ static thread_local
#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __constant__ static
#define __launch_bounds__(...)
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))

// Code of the harness, whose own accesses are not watched.
#define CUDA_CPU_RAW __attribute__((no_sanitize("thread"), no_sanitize("undefined")))

namespace cuda_cpu {

enum class Status : uint8_t { ready, at_barrier, at_collective, done };

// A thread of the block that runs.
struct Thread {
  uint3 index;             // threadIdx
  void* stack;             // its stack pointer while it does not run
  Status status;
  int line;                // of the barrier or collective at which it waits
  unsigned number, warp, lane;
  uint64_t value, result;  // what it brings to a collective, and takes from it
  unsigned mask;
  int source;              // the lane that a shuffle reads, else BALLOT or SYNC
  unsigned exchanges;      // PTX's warp instructions so far, see mma.h
  unsigned steps;          // see in_step
};

constexpr int BALLOT = -1, SYNC = -2;
constexpr unsigned MOST_THREADS = 1024;

// What a kernel sees of the launch.
struct State {
  Thread* current;
  uint3 block;
  dim3 block_size, grid_size;
  char* dynamic_shared;
  bool profile;  // requests of warps are counted
  Thread threads[MOST_THREADS];
};
extern State state;

// Ends the launch with a message; does not come back to a kernel.
void fault(const char* format, ...);
// __syncthreads(); the number of threads whose predicate is not 0.
unsigned sync(int line, unsigned predicate = 0);
// A warp collective of the lanes in `mask`: every lane brings a value, and takes that of lane `source`, or all lanes'
// ballot of non-zero values.
uint64_t collective(unsigned mask, uint64_t value, int source, int line);
// A place that all threads of a warp pass, and some of them alone go on from to an access: what they ask for between two
// such places is asked for together, whatever the others did before. Without it, accesses are counted from a barrier on.
CUDA_CPU_RAW inline void in_step() { ++state.current->steps; }
// An access of a kernel to memory, noted and checked where memory is watched. code: the address of the instruction.
void touch(uintptr_t address, unsigned bytes, bool write, bool atomic, uintptr_t code);

struct Launch;
const char* launch(void (*call)(void*), void* context, Launch* options);

template <class T> constexpr char kind_of() {
  return std::is_pointer_v<T> ? 'p' : std::is_floating_point_v<T> ? 'f' : std::is_integral_v<T> ? 'i' : 's';
}
const char* mismatch(const char* wanted, const unsigned* sizes, unsigned count, const char* kinds, const unsigned* given,
                     unsigned number);

template <class... A> struct Bound {
  void (*kernel)(A...);
  void** arguments;
};
template <class... A, size_t... I>
CUDA_CPU_RAW void invoke(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*(std::remove_const_t<A>*)arguments[I]...);
}
template <class... A> CUDA_CPU_RAW void call_bound(void* context) {
  auto* bound = (Bound<A...>*)context;
  invoke(bound->kernel, bound->arguments, std::index_sequence_for<A...>{});
}
// Launch a kernel with arguments of the given kinds ("pif") and sizes; null, or what was wrong.
template <class... A>
CUDA_CPU_RAW const char* run(void (*kernel)(A...), void** arguments, const char* kinds, const unsigned* sizes,
                             unsigned count, Launch* options) {
  constexpr char wanted[] = {kind_of<A>()..., 0};
  constexpr unsigned wanted_sizes[] = {sizeof(A)..., 0};
  if (const char* wrong = mismatch(wanted, wanted_sizes, sizeof...(A), kinds, sizes, count)) return wrong;
  Bound<A...> bound{kernel, arguments};
  return launch(call_bound<A...>, &bound, options);
}

}  // namespace cuda_cpu

#define CUDA_CPU_EXPORT(kernel)                                                                                       \
  extern "C" CUDA_CPU_RAW __attribute__((visibility("default"))) const char* cuda_cpu_run_##kernel(                   \
      void** a, const char* kinds, const unsigned* sizes, unsigned count, cuda_cpu::Launch* options) {                \
    return cuda_cpu::run(kernel, a, kinds, sizes, count, options);                                                    \
  }

#include "device_functions.h"
#include <cuda_fp16.h>
#include <cuda_bf16.h>
