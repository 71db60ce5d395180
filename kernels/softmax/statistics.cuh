// What softmax and cross-entropy know of a row in one pass over it.
#pragma once
#include "runtime/cuda/rows.cuh"

// The maximum of a part of a row, and the sum of exp(x - maximum), brought up to date with another x.
// M. Milakov and N. Gimelshein, Online normalizer calculation for softmax (2018).
struct Statistics {
  COMPUTED largest = negative_infinity<COMPUTED>(), total = 0;

  // With nothing above -inf so far there is no difference to it.
  static __device__ __forceinline__ COMPUTED shift(COMPUTED largest) {
    return largest == negative_infinity<COMPUTED>() ? COMPUTED(0) : largest;
  }
  __device__ __forceinline__ void add(COMPUTED x) {
    const COMPUTED found = Maximum()(largest, x);
    total = total * exp(largest - shift(found)) + exp(x - shift(found));
    largest = found;
  }
  // As a part of the whole that has this maximum.
  __device__ __forceinline__ COMPUTED total_below(COMPUTED found) const { return total * exp(largest - shift(found)); }
};
