// Recurrent weights as the steps' products read them (product.cuh).
//
// Constants: STORAGE, INDEX (types), CORES (whether tensor cores multiply them).
#include "runtime/cuda/types.cuh"

#define PACK (16 / (int)sizeof(STORAGE))

// Where a tile of 32 columns and 32 terms has a number in shared memory, so that the threads of a warp find different
// banks whether they go along the terms, along the columns, or as the packs do. Two-byte numbers lie two to a bank.
__device__ __forceinline__ int place_of(int column, int term) {
#if CORES
  return column * 32 + ((term / 2) ^ (column / 2 % 4 * 4 + column / 8)) * 2 + term % 2;
#else
  return column * (32 + (sizeof(STORAGE) == 2 ? 2 : 1)) + term;
#endif
}

// One direction's weights: [tiles][terms / PACK][columns of a tile][PACK]. For tensor cores [tiles][terms / 16]
// [columns of a tile / 16][32][8]: 16 columns and 16 terms as mma.m16n8k16 has them, eight numbers of each lane together.
//
// The columns of a tile come in groups of column_tile, the terms in groups of terms_wide; what lies past `columns` (of
// all tiles) or `terms` of a group becomes 0. Column c of group g and term k of group f is
// source[g column_group + c column_step + f term_group + k term_step]. along_terms: a warp reads along the terms, whose
// step is 1; else along the columns.
// grid: (columns of a tile / 32, terms / 32, tiles), rounded up. block: 256.
extern "C" __global__ void __launch_bounds__(256) pack_weights(
    const STORAGE* __restrict__ source,  // the caller's weights, any strides
    STORAGE* __restrict__ packed,  // the caller's, in the order above; written
    int tile_columns, int all_terms, int column_tile, int terms_wide, int columns, int terms, bool along_terms,
    INDEX column_group, INDEX column_step, INDEX term_group, INDEX term_step) {
  __shared__ STORAGE tile[32 * 34];
  const int first_column = blockIdx.x * 32, first_term = blockIdx.y * 32;
  for (int i = threadIdx.x; i < 32 * 32; i += 256) {
    const int c = along_terms ? i / 32 : i % 32, k = along_terms ? i % 32 : i / 32;
    const int group = (first_column + c) / column_tile, part = (first_term + k) / terms_wide;
    const int column = blockIdx.z * column_tile + (first_column + c) % column_tile, term = (first_term + k) % terms_wide;
    STORAGE value = STORAGE(0.0f);
    if (first_column + c < tile_columns && first_term + k < all_terms && column < columns && term < terms)
      value = source[group * column_group + column * column_step + part * term_group + term * term_step];
    tile[place_of(c, k)] = value;
  }
  __syncthreads();
  // In both orders a pack (or 16) of terms of all columns lies together.
  STORAGE* to = packed + ((INDEX)blockIdx.z * all_terms + first_term) * tile_columns;
  to += (INDEX)first_column * (CORES ? 16 : PACK);
  for (int i = threadIdx.x; i < 32 * 32 / PACK; i += 256) {
    Vector<STORAGE, PACK> values;
#if CORES
    // Two tiles of columns, two of terms. A lane's pairs of terms: its column and that 8 behind, then 8 terms behind.
    const int lane = i % 32, c = i / 32 % 2 * 16, k = i / 64 * 16;
    if (first_column + c >= tile_columns || first_term + k >= all_terms) continue;
#pragma unroll
    for (int e = 0; e < PACK; ++e)
      values.v[e] = tile[place_of(c + lane / 4 + e / 2 % 2 * 8, k + lane % 4 * 2 + e % 2 + e / 4 * 8)];
    *reinterpret_cast<Vector<STORAGE, PACK>*>(to + (INDEX)k * tile_columns + c * 16 + lane * 8) = values;
#else
    const int c = i % 32, chunk = i / 32;
    if (first_column + c >= tile_columns || first_term + chunk * PACK >= all_terms) continue;
#pragma unroll
    for (int e = 0; e < PACK; ++e) values.v[e] = tile[place_of(c, chunk * PACK + e)];
    *reinterpret_cast<Vector<STORAGE, PACK>*>(to + (INDEX)chunk * tile_columns * PACK + c * PACK) = values;
#endif
  }
}
