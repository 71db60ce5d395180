// A convolution's weight in the order in which the products read it: turned through shared memory, so that a warp reads
// and writes neighbours whichever way the weight lies.
//
// Constants: STORAGE (type of the weight), COMPUTED (float, or double for double), INDEX (int, or long long where an
// array is too long for it), THREADS (of a block), COLUMNS and LINES (most of a tile: a sector of memory at least).
#include "conv2d/turned.cuh"
#include "runtime/cuda/types.cuh"

// packed = weight as (groups, taps, inner, line), where line is a multiple of COLUMNS that holds `columns`; what is
// behind these is 0. weight: element (group, inner, column, row, tap's column) with strides w_group, w_inner, w_column,
// w_row, w_tap. Both are the caller's.
//
// A block turns COLUMNS columns of `depth` lines, at most LINES. Lines are counted with taps the fastest, or with
// inner_fastest inner places. It reads `fast` lines of a column, then of the next one: lines that lie side by side, or
// 1 where columns do. `fast` divides `depth`. Blocks: columns of tiles, the fastest, times lines of tiles; groups.
extern "C" __global__ void __launch_bounds__(THREADS, 1) pack_weight(
    const STORAGE* __restrict__ weight, STORAGE* __restrict__ packed, int inner, int columns, int line, int depth,
    int fast, int inner_fastest, int kernel_h, int kernel_w, INDEX w_group, INDEX w_inner, INDEX w_column, INDEX w_row,
    INDEX w_tap) {
  // Numbers in words of their own, so that threads are in different banks.
  struct __align__(sizeof(COMPUTED)) Slot {
    STORAGE value;
  };
  // An even number of lines that is no power of two has room for one more, and there are 5 of these at most.
  __shared__ Slot tile[(LINES + 5) * COLUMNS];
  int across = line / COLUMNS, taps = kernel_h * kernel_w, lines = taps * inner;
  int first_column = blockIdx.x % across * COLUMNS, first_line = blockIdx.x / across * depth;
  INDEX group = blockIdx.y;
  int room = turned_pitch(fast) * COLUMNS;
  for (int item = threadIdx.x; item < depth * COLUMNS; item += THREADS) {
    int row = item / (fast * COLUMNS) * fast + item % fast, column = item / fast % COLUMNS;
    int number = first_line + row;
    STORAGE value = narrow<STORAGE>((COMPUTED)0);
    if (number < lines && first_column + column < columns) {
      int i = inner_fastest ? number % inner : number / taps, tap = inner_fastest ? number / inner : number % taps;
      value = weight[group * w_group + i * w_inner + (first_column + column) * w_column + tap / kernel_w * w_row +
                     tap % kernel_w * w_tap];
    }
    tile[row / fast * room + turned_place(column, row % fast, fast)].value = value;
  }
  __syncthreads();
  for (int item = threadIdx.x; item < depth * COLUMNS; item += THREADS) {
    int row = item / COLUMNS, column = item % COLUMNS;
    int number = first_line + row;
    if (number >= lines) continue;
    int i = inner_fastest ? number % inner : number / taps, tap = inner_fastest ? number / inner : number % taps;
    packed[((group * taps + tap) * inner + i) * line + first_column + column] =
        tile[row / fast * room + turned_place(column, row % fast, fast)].value;
  }
}
