// The product of a step: a few rows of states, in shared memory, with packed weights.
//
// Weights are packed by `pack_weights` (arrange.cu): [terms / PACK][columns][PACK], so that neighbouring threads, which
// have neighbouring columns, read neighbouring 16 bytes. A row's states are the same for all lanes of a warp.
#pragma once
#include "runtime/cuda/types.cuh"

// Numbers in 16 bytes of weights, and of states.
#define PACK (16 / (int)sizeof(STORAGE))
#define STATES (16 / (int)sizeof(COMPUTED))

// to = sums of ROWS rows with COLUMNS columns over TERMS terms, of each SPLIT of the terms: [ROWS][SPLIT][COLUMNS], rows
// SUMS_STRIDE apart.
//
// LANES threads take neighbouring columns, EACH columns LANES apart a thread, and THREADS / LANES = SPLIT groups of them
// take every SPLIT-th pack of terms. Whoever reads the sums adds the splits up in order.
//
// rows: [ROWS][TERMS] in shared memory, rows STRIDE apart. weights: [TERMS / PACK][COLUMNS][PACK], in global or shared
// memory. Both have zeros past their last term. The caller puts barriers before and after.
template <int TERMS, int STRIDE, int COLUMNS, int LANES, int EACH, int SUMS_STRIDE>
__device__ __forceinline__ void multiply(const COMPUTED* rows, const STORAGE* weights, COMPUTED* to) {
  constexpr int SPLIT = THREADS / LANES, CHUNKS = TERMS / PACK;
  static_assert(THREADS % LANES == 0 && TERMS % PACK == 0 && STRIDE % STATES == 0, "whole lanes and packs");
  const int lane = threadIdx.x % LANES, split = threadIdx.x / LANES;
  for (int first = 0; first < COLUMNS; first += LANES * EACH) {
    COMPUTED sums[EACH][ROWS] = {};
#pragma unroll(PACK > 4 ? 1 : 2)
    for (int chunk = split; chunk < CHUNKS; chunk += SPLIT) {
      Vector<STORAGE, PACK> w[EACH];
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int column = first + lane + i * LANES;
        // Known when compiled unless the columns do not fill the tile.
        if (COLUMNS % (LANES * EACH) == 0 || column < COLUMNS)
          w[i] = *reinterpret_cast<const Vector<STORAGE, PACK>*>(weights + ((INDEX)chunk * COLUMNS + column) * PACK);
        else
          w[i] = Vector<STORAGE, PACK>{};
      }
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int part = 0; part < PACK; part += STATES) {
          const Vector<COMPUTED, STATES> state =
              *reinterpret_cast<const Vector<COMPUTED, STATES>*>(rows + r * STRIDE + chunk * PACK + part);
#pragma unroll
          for (int e = 0; e < STATES; ++e)
#pragma unroll
            for (int i = 0; i < EACH; ++i) sums[i][r] += widen(w[i].v[part + e]) * state.v[e];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const int column = first + lane + i * LANES;
      if (COLUMNS % (LANES * EACH) == 0 || column < COLUMNS)
#pragma unroll
        for (int r = 0; r < ROWS; ++r) to[r * SUMS_STRIDE + split * COLUMNS + column] = sums[i][r];
    }
  }
}

// One sum of `multiply`, its splits added up in order.
template <int COLUMNS, int LANES, int SUMS_STRIDE>
__device__ __forceinline__ COMPUTED sum_of(const COMPUTED* sums, int row, int column) {
  COMPUTED total = sums[row * SUMS_STRIDE + column];
#pragma unroll
  for (int split = 1; split < THREADS / LANES; ++split) total += sums[row * SUMS_STRIDE + split * COLUMNS + column];
  return total;
}

// Packed weights into shared memory; the caller puts a barrier behind.
template <int COUNT>
__device__ __forceinline__ void hold(const STORAGE* weights, STORAGE* to) {
  for (int i = threadIdx.x * PACK; i < COUNT; i += THREADS * PACK)
    *reinterpret_cast<Vector<STORAGE, PACK>*>(to + i) = *reinterpret_cast<const Vector<STORAGE, PACK>*>(weights + i);
}

// Rows of a state between launches [batch][WIDTH] into shared memory [ROWS][WIDTH], rows STRIDE apart; zeros for rows
// that are not there.
template <int WIDTH, int STRIDE>
__device__ __forceinline__ void load_rows(const COMPUTED* state, const int* rows, COMPUTED* to) {
  for (int i = threadIdx.x * STATES; i < ROWS * WIDTH; i += THREADS * STATES) {
    Vector<COMPUTED, STATES> values = {};
    const int row = rows[i / WIDTH];
    if (row >= 0) values = *reinterpret_cast<const Vector<COMPUTED, STATES>*>(state + (INDEX)row * WIDTH + i % WIDTH);
    *reinterpret_cast<Vector<COMPUTED, STATES>*>(to + i / WIDTH * STRIDE + i % WIDTH) = values;
  }
}
