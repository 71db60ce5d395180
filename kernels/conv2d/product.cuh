// What the matrix products of convolutions share: the tile that a block multiplies, and where its operands lie.
//
// A block has a tile of (TILE_ROWS, TILE_COLUMNS) sums and goes along the inner dimension INNER terms at a time. Both
// operands come to shared memory, in two buffers: while one is multiplied, the next is on its way through registers.
//
// Constants: STORAGE (type of the images and of the weight), COMPUTED (float, or double for double), INDEX (int, or
// long long where an array is too long for it), TILE_ROWS, TILE_COLUMNS, INNER, THREADS (of a block), VECTOR (elements
// of an image that are read at once: 16 bytes of neighbouring channels, or 1), LAST (1: neighbours in memory of what is
// written go along TILE_COLUMNS, 0: along TILE_ROWS), CORES (1: tensor cores, for half precision; 0: registers),
// ROW_PARTS and COLUMN_PARTS: with CORES warps, else threads, along each side of the tile.
#pragma once
#include "runtime/cuda/types.cuh"
#if CORES
#include "runtime/cuda/fragments.cuh"
#endif

// Elements of 16 bytes.
#define WIDE (16 / (int)sizeof(STORAGE))
#define WIDE_SUMS (16 / (int)sizeof(COMPUTED))

typedef Vector<STORAGE, WIDE> Wide;
typedef Vector<COMPUTED, WIDE_SUMS> WideSums;

// Bytes on their way from memory to shared memory, in registers. Not as numbers: of halves the compiler would take each
// apart as soon as it is there, and so wait for memory where it should multiply.
template <int BYTES> struct Raw;
template <> struct Raw<2> { typedef unsigned short type; };
template <> struct Raw<4> { typedef unsigned type; };
template <> struct Raw<8> { typedef uint2 type; };
template <> struct Raw<16> { typedef uint4 type; };
typedef Raw<(int)sizeof(STORAGE) * VECTOR>::type Read;
typedef Raw<16>::type ReadWide;

// What is at an address, or zeros. Every thread of a warp calls it.
template <class T> __device__ __forceinline__ T read_if(bool exists, const STORAGE* from) {
  T found = {};
#ifdef CUDA_CPU
  cuda_cpu::in_step();
#endif
  if (exists) found = *reinterpret_cast<const T*>(from);
  return found;
}

// A pixel, or a tap and channel: how far it is from the start of an image, and its part of the row and column that the
// two meet together. Of one that does not exist the row is far outside of any image.
struct __align__(16) Place {
  INDEX at;
  int row, column;
};
#define NOWHERE (-(1 << 29))

__device__ __forceinline__ bool meets(const Place& a, const Place& b, int height, int width) {
  return (unsigned)(a.row + b.row) < (unsigned)height && (unsigned)(a.column + b.column) < (unsigned)width;
}

// Lines of a tile in shared memory: ALONG has the inner dimension in a line, else a line is of one inner place and has
// the rows (or columns). The padding lets the threads of a warp reach all banks, and keeps vectors aligned.
template <bool ALONG, int SIDE> struct Lines {
  static constexpr int PITCH = (ALONG ? INNER : SIDE) + (CORES ? 8 : 4);
  static constexpr int SIZE = (ALONG ? SIDE : INNER) * PITCH;
  static __device__ __forceinline__ int place(int side, int inner) {
    return ALONG ? side * PITCH + inner : inner * PITCH + side;
  }
};

// Which vector of a tile of INNER lines of SIDE elements thread number `item` moves: (inner place, vector in the line).
// Eight threads write 128 bytes that lie in different banks: of one line, or, where that is shorter, of eight.
template <int SIDE, int WIDTH> struct Across {
  static constexpr int OF_LINE = SIDE / WIDTH, ITEMS = INNER * OF_LINE / THREADS;
  static constexpr bool SHORT = OF_LINE == 4;
  static __device__ __forceinline__ int inner(int item) { return SHORT ? item / 32 * 8 + item % 8 : item / OF_LINE; }
  static __device__ __forceinline__ int vector(int item) { return SHORT ? item % 32 / 8 : item % OF_LINE; }
};

#if CORES

// T where FIRST, else U.
template <bool FIRST, class T, class U> struct Pick { typedef T type; };
template <class T, class U> struct Pick<false, T, U> { typedef U type; };

// The tile in fragments of tensor cores: each warp has FR by FC of 16 by 16 sums.
template <bool ALONG_A, bool ALONG_B> struct Sums {
  static constexpr int FR = TILE_ROWS / ROW_PARTS / 16, FC = TILE_COLUMNS / COLUMN_PARTS / 16;
  static constexpr int SLICES = FC, SLICE = COLUMN_PARTS * 16;
  static constexpr int PITCH = LAST ? SLICE + 8 : TILE_ROWS + 4;
  typedef Lines<ALONG_A, TILE_ROWS> A;
  typedef Lines<ALONG_B, TILE_COLUMNS> B;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sums[FR][FC];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < FR; ++i)
#pragma unroll
      for (int j = 0; j < FC; ++j) nvcuda::wmma::fill_fragment(sums[i][j], 0.0f);
  }

  __device__ __forceinline__ static int first_row(int i) { return (threadIdx.x / 32 / COLUMN_PARTS * FR + i) * 16; }
  __device__ __forceinline__ static int first_column(int j) {
    return (j * COLUMN_PARTS + threadIdx.x / 32 % COLUMN_PARTS) * 16;
  }

  // sums += a b. a: (TILE_ROWS, INNER), b: (INNER, TILE_COLUMNS) in shared memory.
  __device__ __forceinline__ void multiply(const STORAGE* a, const STORAGE* b) {
    using namespace nvcuda::wmma;
    typedef typename Pick<ALONG_A, row_major, col_major>::type OrderA;
    typedef typename Pick<ALONG_B, col_major, row_major>::type OrderB;
#pragma unroll
    for (int k = 0; k < INNER; k += 16) {
      fragment<matrix_a, 16, 16, 16, STORAGE, OrderA> left[FR];
#pragma unroll
      for (int i = 0; i < FR; ++i) load_shared(left[i], a + A::place(first_row(i), k), A::PITCH);
#pragma unroll
      for (int j = 0; j < FC; ++j) {
        fragment<matrix_b, 16, 16, 16, STORAGE, OrderB> right;
        load_shared(right, b + B::place(first_column(j), k), B::PITCH);
#pragma unroll
        for (int i = 0; i < FR; ++i) mma_sync(sums[i][j], left[i], right, sums[i][j]);
      }
    }
  }

  // Columns [slice * SLICE, (slice + 1) * SLICE) of the tile to shared memory; see `staged`.
  __device__ __forceinline__ void stage(int slice, COMPUTED* staging) {
    using namespace nvcuda::wmma;
    int column = threadIdx.x / 32 % COLUMN_PARTS * 16;
#pragma unroll
    for (int i = 0; i < FR; ++i) {
      if (LAST)
        store_matrix_sync(staging + first_row(i) * PITCH + column, sums[i][slice], PITCH, mem_row_major);
      else
        store_matrix_sync(staging + column * PITCH + first_row(i), sums[i][slice], PITCH, mem_col_major);
    }
  }
};

#else

// The tile in registers: each thread has FR by FC sums, in groups of 16 bytes that lie WIDE_SUMS * PARTS apart. Both
// operands have a line for each inner place.
template <bool ALONG_A, bool ALONG_B> struct Sums {
  static_assert(!ALONG_A && !ALONG_B, "products in registers read lines of one inner place");
  static constexpr int FR = TILE_ROWS / ROW_PARTS, FC = TILE_COLUMNS / COLUMN_PARTS;
  static constexpr int SLICES = FC / WIDE_SUMS, SLICE = COLUMN_PARTS * WIDE_SUMS;
  static constexpr int PITCH = LAST ? SLICE + 4 : TILE_ROWS + 4;
  typedef Lines<false, TILE_ROWS> A;
  typedef Lines<false, TILE_COLUMNS> B;
  COMPUTED sums[FR][FC];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < FR; ++i)
#pragma unroll
      for (int j = 0; j < FC; ++j) sums[i][j] = 0;
  }

  // A warp is 8 threads by 4, the 8 along what lies side by side in memory.
  __device__ __forceinline__ static int row_part() {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    return LAST ? warp / (COLUMN_PARTS / 8) * 4 + lane / 8 : warp % (ROW_PARTS / 8) * 8 + lane % 8;
  }
  __device__ __forceinline__ static int column_part() {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    return LAST ? warp % (COLUMN_PARTS / 8) * 8 + lane % 8 : warp / (ROW_PARTS / 8) * 4 + lane / 8;
  }

  // sums += a b. a: (TILE_ROWS, INNER), b: (INNER, TILE_COLUMNS) in shared memory.
  __device__ __forceinline__ void multiply(const STORAGE* a, const STORAGE* b) {
    a += row_part() * WIDE_SUMS;
    b += column_part() * WIDE_SUMS;
#pragma unroll
    for (int k = 0; k < INNER; ++k) {
      WideSums left[FR / WIDE_SUMS], right[FC / WIDE_SUMS];
#pragma unroll
      for (int i = 0; i < FR / WIDE_SUMS; ++i)
        left[i] = *(const WideSums*)(a + k * A::PITCH + i * ROW_PARTS * WIDE_SUMS);
#pragma unroll
      for (int j = 0; j < FC / WIDE_SUMS; ++j)
        right[j] = *(const WideSums*)(b + k * B::PITCH + j * COLUMN_PARTS * WIDE_SUMS);
#pragma unroll
      for (int i = 0; i < FR; ++i)
#pragma unroll
        for (int j = 0; j < FC; ++j)
          sums[i][j] += left[i / WIDE_SUMS].v[i % WIDE_SUMS] * right[j / WIDE_SUMS].v[j % WIDE_SUMS];
    }
  }

  // Columns [slice * SLICE, (slice + 1) * SLICE) of the tile to shared memory; see `staged`.
  __device__ __forceinline__ void stage(int slice, COMPUTED* staging) {
    int column = column_part() * WIDE_SUMS;
#pragma unroll
    for (int group = 0; group < FR / WIDE_SUMS; ++group) {
      int row = (group * ROW_PARTS + row_part()) * WIDE_SUMS;
#pragma unroll
      for (int i = 0; i < WIDE_SUMS; ++i) {
        WideSums found;
#pragma unroll
        for (int j = 0; j < WIDE_SUMS; ++j)
          found.v[j] = LAST ? sums[group * WIDE_SUMS + i][slice * WIDE_SUMS + j]
                            : sums[group * WIDE_SUMS + j][slice * WIDE_SUMS + i];
        *(WideSums*)(staging + (LAST ? (row + i) * PITCH + column : (column + i) * PITCH + row)) = found;
      }
    }
  }
};

#endif

// Shared memory of a block: two buffers of both operands, and afterwards the sums on their way out.
template <class S> struct Memory {
  static constexpr int OPERANDS = (S::A::SIZE + S::B::SIZE) * (int)sizeof(STORAGE);
  static constexpr int STAGING = (LAST ? TILE_ROWS : S::SLICE) * S::PITCH * (int)sizeof(COMPUTED);
  static constexpr int BYTES = 2 * OPERANDS > STAGING ? 2 * OPERANDS : STAGING;
};

// N sums that lie side by side in the staging, from a multiple of 4 on; OF_ROW threads have a row. Half of the threads
// begin with the second half of eight, so that all banks are read.
template <int N, int OF_ROW> __device__ __forceinline__ void read_sums(const COMPUTED* from, COMPUTED (&found)[N]) {
  if constexpr (N == 2 * WIDE_SUMS) {
    bool flip = threadIdx.x / (OF_ROW > 2 ? 4 : 1) % 2;
    WideSums one = *(const WideSums*)(from + (flip ? WIDE_SUMS : 0));
    WideSums two = *(const WideSums*)(from + (flip ? 0 : WIDE_SUMS));
#pragma unroll
    for (int i = 0; i < WIDE_SUMS; ++i) {
      found[i] = flip ? two.v[i] : one.v[i];
      found[WIDE_SUMS + i] = flip ? one.v[i] : two.v[i];
    }
  } else {
    static_assert(N == WIDE_SUMS, "one or two groups of 16 bytes");
    WideSums one = *(const WideSums*)from;
#pragma unroll
    for (int i = 0; i < N; ++i) found[i] = one.v[i];
  }
}
