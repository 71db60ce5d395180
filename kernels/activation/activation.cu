// The activations as kernels of their own. A thread has VECTOR neighbours in memory of the result.
//
// Constants: STORAGE (type of the arrays), COMPUTED (float, or double for double), INDEX (int, or long long where an
// array is too long for it), THREADS (of a block, at most), VECTOR (more than 1 only where all arrays lie as the result
// does).
//
// Arguments in common. items: threads with work, elements of the result / VECTOR. n1, n2, n3: extents of the last three
// of four dimensions in which the elements are counted; X0 to X3: strides of array X in them. With VECTOR > 1 these are
// not read. activation: which one. All arrays are the caller's; out is dense and not among those that are read.
#include "activation/activation.cuh"
#include "runtime/cuda/types.cuh"

namespace {

typedef Vector<STORAGE, VECTOR> Numbers;

__device__ __forceinline__ INDEX item_of_thread() { return (INDEX)blockIdx.x * blockDim.x + threadIdx.x; }

// Where a thread's elements are in an array.
__device__ __forceinline__ INDEX place(
    INDEX item, INDEX n1, INDEX n2, INDEX n3, INDEX s0, INDEX s1, INDEX s2, INDEX s3) {
  if (VECTOR > 1) return item * VECTOR;
  INDEX d = item % n3;
  item /= n3;
  INDEX c = item % n2;
  item /= n2;
  return item / n1 * s0 + item % n1 * s1 + c * s2 + d * s3;
}

}  // namespace

// out = act(x).
extern "C" __global__ void __launch_bounds__(THREADS, 1) activate_elements(
    const STORAGE* __restrict__ x, STORAGE* __restrict__ out, INDEX items, INDEX n1, INDEX n2, INDEX n3, INDEX x0,
    INDEX x1, INDEX x2, INDEX x3, int activation) {
  INDEX item = item_of_thread();
  if (item >= items) return;
  Numbers read = *(const Numbers*)(x + place(item, n1, n2, n3, x0, x1, x2, x3));
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane)
    read.v[lane] = narrow<STORAGE>(activate(widen(read.v[lane]), activation));
  *(Numbers*)(out + item * VECTOR) = read;
}

// out = grad * act'(x), from known: act(x) for relu, tanh and sigmoid, else x.
extern "C" __global__ void __launch_bounds__(THREADS, 1) activation_gradient_elements(
    const STORAGE* __restrict__ grad, const STORAGE* __restrict__ known, STORAGE* __restrict__ out, INDEX items,
    INDEX n1, INDEX n2, INDEX n3, INDEX g0, INDEX g1, INDEX g2, INDEX g3, INDEX k0, INDEX k1, INDEX k2, INDEX k3,
    int activation) {
  INDEX item = item_of_thread();
  if (item >= items) return;
  Numbers g = *(const Numbers*)(grad + place(item, n1, n2, n3, g0, g1, g2, g3));
  Numbers value = *(const Numbers*)(known + place(item, n1, n2, n3, k0, k1, k2, k3));
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane)
    g.v[lane] = narrow<STORAGE>(activation_gradient(widen(g.v[lane]), widen(value.v[lane]), activation));
  *(Numbers*)(out + item * VECTOR) = g;
}

// In place: sums += bias, then out = act(sums). sums: a dense matrix of n3 columns, which VECTOR divides. bias: (n3,)
// side by side, or one number where bias_step is 0, or null. out: as sums, or null where only the bias is added.
extern "C" __global__ void __launch_bounds__(THREADS, 1) add_bias_and_activate(
    STORAGE* __restrict__ sums, const STORAGE* __restrict__ bias, STORAGE* __restrict__ out, INDEX items, INDEX n3,
    int bias_step, int activation) {
  INDEX item = item_of_thread();
  if (item >= items) return;
  Numbers total = *(const Numbers*)(sums + item * VECTOR);
  if (bias) {
    Numbers added;
    if (bias_step) added = *(const Numbers*)(bias + item * VECTOR % n3);
#pragma unroll
    for (int lane = 0; lane < VECTOR; ++lane)
      total.v[lane] = narrow<STORAGE>(widen(total.v[lane]) + widen(bias_step ? added.v[lane] : *bias));
    *(Numbers*)(sums + item * VECTOR) = total;
  }
  if (out) {
#pragma unroll
    for (int lane = 0; lane < VECTOR; ++lane)
      total.v[lane] = narrow<STORAGE>(activate(widen(total.v[lane]), activation));
    *(Numbers*)(out + item * VECTOR) = total;
  }
}
