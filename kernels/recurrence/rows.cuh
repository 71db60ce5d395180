// The rows of a block: which rows of the batch they are, and how many steps each has.
#pragma once

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
