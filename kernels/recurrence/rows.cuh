// What both kernels of a recurrence do before and after their steps: the rows of a block, its numbers of each, its weights.
#pragma once
#include "recurrence/product.cuh"

// Units of all rows of the block that a thread has, and states where they are projected.
#define ITEMS ((ROWS * UNIT_TILE + THREADS - 1) / THREADS)
#define HIDDEN_ITEMS ((ROWS * HIDDEN_TILE + THREADS - 1) / THREADS)

// rows[ROWS]: the batch's row of each place, -1 past the last one. ends[ROWS]: its length, in [0, steps].
// order [batch]: the rows in the order in which blocks take them, or null. The caller puts a barrier behind.
__device__ __forceinline__ void find_rows(
    const LENGTH* lengths, const long long* order, int batch, int steps, int* rows, int* ends) {
  if (threadIdx.x < ROWS) {
    const int place = blockIdx.x * ROWS + threadIdx.x;
    const int row = place < batch ? (order ? (int)order[place] : place) : -1;
    int end = row < 0 ? 0 : steps;
    if (row >= 0 && lengths) {
      const LENGTH length = lengths[row];
      end = length < 0 ? 0 : length < steps ? (int)length : steps;
    }
    rows[threadIdx.x] = row;
    ends[threadIdx.x] = end;
  }
}

__device__ __forceinline__ int longest_of(const int* ends) {
  int longest = 0;
#pragma unroll
  for (int r = 0; r < ROWS; ++r) longest = ends[r] > longest ? ends[r] : longest;
  return longest;
}

// A number of an array of STORAGE that may be null, which is zeros.
__device__ __forceinline__ COMPUTED at_or_zero(const STORAGE* array, INDEX index) {
  return array ? widen(array[index]) : COMPUTED(0);
}

// f(i, is_there, row, p) for each number i of an array [ROWS][TILE] of the block: that of a unit or state p < size, and of
// a row among those of all directions.
template <int TILE, class F>
__device__ __forceinline__ void each_of_tile(const int* rows, int batch, int size, F f) {
  for (int i = threadIdx.x; i < ROWS * TILE; i += THREADS) {
    const int row = rows[i / TILE], p = (int)blockIdx.y * TILE + i % TILE;
    f(i, row >= 0 && p < size, (INDEX)blockIdx.z * batch + row, p);
  }
}

// cells [ROWS][UNIT_TILE]: a number of each unit, before the first step of the launch. given [D][B][H]: before the first
// step of all, or null, which is zeros; kept [D][B][H]: what the launch before this one left.
__device__ __forceinline__ void load_cells(
    COMPUTED* cells, const int* rows, int batch, int units, bool is_first, const STORAGE* given, const COMPUTED* kept) {
  each_of_tile<UNIT_TILE>(rows, batch, units, [&](int i, bool is_there, INDEX row, int unit) {
    const INDEX at = row * units + unit;
    cells[i] = !is_there ? COMPUTED(0) : is_first ? at_or_zero(given, at) : kept[at];
  });
}

// The same after the last step: the result, or what is left to the next launch.
__device__ __forceinline__ void store_cells(
    const COMPUTED* cells, const int* rows, int batch, int units, bool is_last, STORAGE* result, COMPUTED* kept) {
  each_of_tile<UNIT_TILE>(rows, batch, units, [&](int i, bool is_there, INDEX row, int unit) {
    const INDEX at = row * units + unit;
    if (!is_there) return;
    if (is_last) result[at] = narrow<STORAGE>(cells[i]);
    else kept[at] = cells[i];
  });
}

// Of the weights of all blocks this block's, COUNT of them; HELD, from now on in shared memory. The caller puts a barrier
// behind.
template <int COUNT> __device__ __forceinline__ const STORAGE* weights_of_block(const STORAGE* weights, COMPUTED* held) {
  weights += ((INDEX)blockIdx.z * gridDim.y + blockIdx.y) * COUNT;
#if HELD
  hold<COUNT>(weights, reinterpret_cast<STORAGE*>(held));
  return reinterpret_cast<STORAGE*>(held);
#else
  return weights;
#endif
}
