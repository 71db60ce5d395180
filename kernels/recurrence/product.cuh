// The product of a step: a few rows of states, in shared memory, with packed weights.
//
// Half precision is multiplied on tensor cores (CORES), everything else by the ordinary units. In both, 16 bytes of
// weights are one load of a thread, neighbouring threads read neighbouring 16 bytes, and pack_weights.cu has put the
// weights so.
#pragma once
#include "runtime/cuda/tensor_cores.cuh"

// Numbers in 16 bytes of weights, and of states between launches.
#define PACK (16 / (int)sizeof(STORAGE))
#define STATES (16 / (int)sizeof(COMPUTED))

// What a product takes of a row: tensor cores want the weights' type, and eight rows, those that are not there 0.
#if CORES
#define FACTOR STORAGE
#define FACTOR_ROWS 8
static_assert(ROWS <= 8, "a product on tensor cores has eight rows");
#else
#define FACTOR COMPUTED
#define FACTOR_ROWS ROWS
#endif

// to = sums of ROWS rows with COLUMNS columns over TERMS terms, of each SPLIT of the terms: [ROWS][SPLIT][COLUMNS], rows
// SUMS_STRIDE apart. LANES columns are taken side by side and EACH of them, LANES apart, by a thread (on tensor cores: 16
// columns by a warp); SPLIT groups of threads take every SPLIT-th pack of terms. Whoever reads the sums adds the splits
// up in order.
//
// rows: [FACTOR_ROWS][TERMS] in shared memory, rows STRIDE apart. weights: as packed, in global or shared memory. Both
// have zeros past their last term. The caller puts barriers before and after.
#if CORES
template <int TERMS, int STRIDE, int COLUMNS, int LANES, int EACH, int SPLIT, int SUMS_STRIDE>
__device__ __forceinline__ void multiply(const FACTOR* rows, const STORAGE* weights, COMPUTED* to) {
  constexpr int WARPS = LANES / 16;
  static_assert(WARPS * SPLIT * 32 == THREADS && LANES % 16 == 0, "every warp has 16 columns");
  static_assert(TERMS % 16 == 0 && COLUMNS % 16 == 0 && STRIDE % 8 == 0, "whole tiles");
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, split = warp / WARPS;
  const int group = lane / 4, pair = lane % 4 * 2;
  for (int first = warp % WARPS; first < COLUMNS / 16; first += WARPS * EACH) {
    float sums[EACH][4] = {};
#pragma unroll 2
    for (int chunk = split; chunk < TERMS / 16; chunk += SPLIT) {
      uint4 w[EACH];
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int tile = first + i * WARPS;
        if (COLUMNS % (LANES * EACH) == 0 || tile < COLUMNS / 16)
          w[i] = *reinterpret_cast<const uint4*>(weights + (((INDEX)chunk * (COLUMNS / 16) + tile) * 32 + lane) * 8);
        else
          w[i] = make_uint4(0, 0, 0, 0);
      }
      const STORAGE* row = rows + group * STRIDE + chunk * 16 + pair;
      const unsigned state = *reinterpret_cast<const unsigned*>(row), later = *reinterpret_cast<const unsigned*>(row + 8);
#pragma unroll
      for (int i = 0; i < EACH; ++i) TensorCores<STORAGE>::add(sums[i], w[i], state, later);
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const int column = (first + i * WARPS) * 16 + group;
      if (COLUMNS % (LANES * EACH) && column >= COLUMNS) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (pair + e % 2 < ROWS) to[(pair + e % 2) * SUMS_STRIDE + split * COLUMNS + column + e / 2 * 8] = sums[i][e];
    }
  }
}
#else
template <int TERMS, int STRIDE, int COLUMNS, int LANES, int EACH, int SPLIT, int SUMS_STRIDE>
__device__ __forceinline__ void multiply(const FACTOR* rows, const STORAGE* weights, COMPUTED* to) {
  constexpr int CHUNKS = TERMS / PACK;
  static_assert(LANES * SPLIT == THREADS && TERMS % PACK == 0 && STRIDE % STATES == 0, "whole lanes and packs");
  const int lane = threadIdx.x % LANES, split = threadIdx.x / LANES;
  for (int first = 0; first < COLUMNS; first += LANES * EACH) {
    COMPUTED sums[EACH][ROWS] = {};
#pragma unroll 2
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

#endif

// One sum of `multiply`, its splits added up in order.
template <int COLUMNS, int SPLIT, int SUMS_STRIDE>
__device__ __forceinline__ COMPUTED sum_of(const COMPUTED* sums, int row, int column) {
  COMPUTED total = sums[row * SUMS_STRIDE + column];
#pragma unroll
  for (int split = 1; split < SPLIT; ++split) total += sums[row * SUMS_STRIDE + split * COLUMNS + column];
  return total;
}

// Packed weights into shared memory; the caller puts a barrier behind.
template <int COUNT>
__device__ __forceinline__ void hold(const STORAGE* weights, STORAGE* to) {
  for (int i = threadIdx.x * PACK; i < COUNT; i += THREADS * PACK)
    *reinterpret_cast<Vector<STORAGE, PACK>*>(to + i) = *reinterpret_cast<const Vector<STORAGE, PACK>*>(weights + i);
}

// The row that comes number n of those that are stored one after another. Each row of the factors of tensor cores lies 4
// banks after the one before, so they come in an order in which a row's banks follow those of the last one.
template <int WIDTH> __device__ __forceinline__ int row_in_turn(int n) {
#if CORES
  constexpr int apart = WIDTH * (int)sizeof(FACTOR) / 16 % 8;
  constexpr int round = apart == 0 ? 1 : apart % 4 == 0 ? 2 : apart % 2 == 0 ? 4 : 8;
  return (n * apart + n / round) % 8;
#else
  return n;
#endif
}

// Rows of a state between launches [batch][WIDTH] as factors in shared memory [FACTOR_ROWS][WIDTH], rows STRIDE apart;
// zeros for rows that are not there.
template <int WIDTH, int STRIDE>
__device__ __forceinline__ void load_rows(const COMPUTED* state, const int* rows, FACTOR* to) {
  for (int i = threadIdx.x * STATES; i < FACTOR_ROWS * WIDTH; i += THREADS * STATES) {
    const int r = row_in_turn<WIDTH>(i / WIDTH), row = r < ROWS ? rows[r] : -1;
    Vector<FACTOR, STATES> values;
#pragma unroll
    for (int e = 0; e < STATES; ++e) values.v[e] = narrow<FACTOR>(COMPUTED(0));
    if (row >= 0) {
      const COMPUTED* from = state + (INDEX)row * WIDTH + i % WIDTH;
      const Vector<COMPUTED, STATES> found = *reinterpret_cast<const Vector<COMPUTED, STATES>*>(from);
#pragma unroll
      for (int e = 0; e < STATES; ++e) values.v[e] = narrow<FACTOR>(found.v[e]);
    }
    *reinterpret_cast<Vector<FACTOR, STATES>*>(to + r * STRIDE + i % WIDTH) = values;
  }
}

// Zeros for factors [FACTOR_ROWS], rows STRIDE apart.
template <int STRIDE>
__device__ __forceinline__ void clear_rows(FACTOR* to) {
  for (int i = threadIdx.x; i < FACTOR_ROWS * STRIDE; i += THREADS) to[i] = narrow<FACTOR>(COMPUTED(0));
}
