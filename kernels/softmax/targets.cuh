// What cross-entropy knows of a row's target.
//
// Constants: see runtime/cuda/rows.cuh; TARGET: the type of class indices where INDEXED is 1, else STORAGE, of
// probabilities.
//
// Names as in cross_entropy_cpu.py: u are a row's targets made smooth and weighted: a dense part (hard * t_c + even) * w_c,
// left out where it is zero, and for class indices one term hard * w_t at the class t, with hard = 1 - smoothing and
// even = smoothing / n. A class index that is neither a class nor ignore_index is never used as an address and makes its
// row NaN.
#pragma once
#include "softmax/statistics.cuh"

// The weight of a class, 1 without weights.
__device__ __forceinline__ COMPUTED weight_of(const STORAGE* weight, long long c) {
  return weight ? COMPUTED(widen(weight[c])) : COMPUTED(1);
}

struct Targets {
  const TARGET* target;
  const STORAGE* weight;  // (n,), contiguous, or null
  long long ignore_index;
  COMPUTED hard, even;
  bool dense;

  __device__ __forceinline__ Targets(
      const TARGET* target, const STORAGE* weight, long long ignore_index, COMPUTED smoothing, int n)
      : target(target), weight(weight), ignore_index(ignore_index), hard(1 - smoothing), even(smoothing / n),
        dense(!INDEXED || smoothing != 0) {}

  __device__ __forceinline__ COMPUTED dense_of(COMPUTED probability, COMPUTED of_class) const {
    return (INDEXED ? even : hard * probability + even) * of_class;
  }
};

#if INDEXED
// A row's class.
struct Class {
  long long index;   // or 0, where it is no class
  COMPUTED weight;   // NaN there
  bool counts;       // it is not ignored
  __device__ __forceinline__ Class(const Targets& t, const TARGET* at, int n) {
    const long long found = *at;
    const bool inside = found >= 0 && found < n;
    counts = found != t.ignore_index;
    index = inside ? found : 0;
    weight = inside ? weight_of(t.weight, index) : not_a_number<COMPUTED>();
  }
};
#endif

// Writes one number of a row, rounded where losses are returned as they are.
__device__ __forceinline__ void store_loss(STORAGE* each, COMPUTED* wide, long long row, COMPUTED loss) {
  if (each) each[row] = narrow<STORAGE>(loss);
  else wide[row] = loss;
}
