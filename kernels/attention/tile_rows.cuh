// Rows of arrays into tiles of shared memory and back, in accesses of 128 bits where ALIGNED says that all can be.
//
// Numbers that are no numbers: a hidden key with NaN in it meets weights of 0, and 0 * NaN is NaN. So a loaded tile
// that holds NaN or infinity is noticed (not_finite), zeros take their place before the product that sums over it
// (clean), and each such number is then added to the sums of exactly those who see it (add_not_finite). That is rare,
// and slow.
#pragma once
#include "attention/tile_products.cuh"

typedef Vector<STORAGE, 16 / (int)sizeof(STORAGE)> Line;
constexpr int LINE = 16 / (int)sizeof(STORAGE);

// The exponent of a number that is not finite is all ones: one more carries into the sign's place.
template <unsigned SIZE, unsigned ONE, unsigned SIGN> struct ExponentBits {
  static constexpr unsigned size = SIZE, one = ONE, sign = SIGN;
};
template <class T> struct Exponent;
template <> struct Exponent<float> : ExponentBits<0x7FFFFFFFu, 0x00800000u, 0x80000000u> {};
template <> struct Exponent<double> : ExponentBits<0x7FFFFFFFu, 0x00100000u, 0x80000000u> {};
template <> struct Exponent<__half> : ExponentBits<0x7FFF7FFFu, 0x04000400u, 0x80008000u> {};
template <> struct Exponent<__nv_bfloat16> : ExponentBits<0x7FFF7FFFu, 0x00800080u, 0x80008000u> {};

// Not 0 where one of the numbers in 128 bits is NaN or infinity.
__device__ __forceinline__ unsigned not_finite(const uint4& words) {
  typedef Exponent<STORAGE> E;
  unsigned found = ((words.y & E::size) + E::one) | ((words.w & E::size) + E::one);
  if (sizeof(STORAGE) != 8) found |= ((words.x & E::size) + E::one) | ((words.z & E::size) + E::one);
  return found & E::sign;
}

// Columns of rows, of the array's, that a tile holds: as many as fit from `first` on. Rows that are WIDE are taken in
// parts, by blocks of their own where they are written.
struct Columns {
  int first, count;
  template <int WIDTH> __device__ __forceinline__ static Columns of_part(int part, int width) {
    return WIDE ? Columns{part * WIDTH, min(max(width - part * WIDTH, 0), WIDTH)} : Columns{0, width};
  }
};

// Rows of an array: row r is row first + r of those at `from`, `step` apart, of which there are `count`.
struct Rows {
  const STORAGE* from;
  INDEX step;
  int first, count;
  __device__ __forceinline__ const STORAGE* operator()(int r) const {
    return first + r < count ? from + (first + r) * step : nullptr;
  }
};

// ROWS rows of some columns, 0 behind them up to WIDTH. row(r): address of row r, null where there is none. Returns whether
// this thread met a number that is not finite.
template <int ROWS, int WIDTH, int PITCH, class Row>
__device__ __forceinline__ bool load_rows(const Padded<PITCH>& tile, Columns columns, INDEX step, Row row) {
  unsigned odd = 0;
  if constexpr (ALIGNED) {
    constexpr int OF_ROW = WIDTH / LINE, STEPS = (ROWS * OF_ROW + THREADS - 1) / THREADS;
#pragma unroll(STEPS <= 8 ? STEPS : 4)
    for (int n = 0; n < STEPS; ++n) {
      const int place = n * THREADS + threadIdx.x;
      if (ROWS * OF_ROW % THREADS != 0 && place >= ROWS * OF_ROW) break;
      const int r = place / OF_ROW, e = place % OF_ROW * LINE;
      const STORAGE* from = row(r);
      uint4 words = make_uint4(0, 0, 0, 0);
      if (from != nullptr && e < columns.count) words = *reinterpret_cast<const uint4*>(from + columns.first + e);
      *reinterpret_cast<uint4*>(tile(r, e)) = words;
      if (HIDES) odd |= not_finite(words);
    }
  } else {
    for (int place = threadIdx.x; place < ROWS * WIDTH; place += THREADS) {
      const int r = place / WIDTH, e = place % WIDTH;
      const STORAGE* from = row(r);
      const bool here = from != nullptr && e < columns.count;
      const STORAGE x = here ? from[(columns.first + e) * step] : narrow<STORAGE>((COMPUTED)0);
      *tile(r, e) = x;
      if (HIDES) odd |= !is_finite(widen(x));
    }
  }
  return odd != 0;
}

// products = rows of `left` times rows of `right`, all columns of theirs in turn through their tiles. All threads of the
// block call this, and have done with the tiles.
template <int M, int N, int WIDTH, int PITCH, class Products, class LeftRow, class RightRow>
__device__ __forceinline__ void multiply_all_columns(
    Products& products, const Padded<PITCH>& left, INDEX left_step, LeftRow left_row, const Padded<PITCH>& right,
    INDEX right_step, RightRow right_row, int width) {
  products.clear();
#pragma unroll 1
  for (int part = 0; part * WIDTH < width; ++part) {
    const Columns columns = Columns::of_part<WIDTH>(part, width);
    if (part > 0) __syncthreads();
    load_rows<M, WIDTH>(left, columns, left_step, left_row);
    load_rows<N, WIDTH>(right, columns, right_step, right_row);
    __syncthreads();
    products.template multiply<WIDTH>(left, right);
  }
}

// Zeros in the place of whatever is not finite.
template <int ROWS, int WIDTH, int PITCH> __device__ __forceinline__ void clean(const Padded<PITCH>& tile) {
#pragma unroll 1
  for (int place = threadIdx.x; place < ROWS * WIDTH; place += THREADS) {
    STORAGE& x = *tile(place / WIDTH, place % WIDTH);
    if (!is_finite(widen(x))) x = narrow<STORAGE>((COMPUTED)0);
  }
}

// sums[m, n] += weight(m, k) * x[k, n] for all x[k, n] that are not finite and all m with sees(m, k). All threads of
// the block call this. row(k): address of row k of x in global memory, null where there is none. flags: M numbers,
// odd_row: as many numbers as `columns` of shared memory.
template <int M, int K, class Sums, class Row, class Sees, class Weight>
__device__ __forceinline__ void add_not_finite(
    Sums& sums, int* flags, STORAGE* odd_row, Columns columns, INDEX step, Row row, Sees sees, Weight weight) {
#pragma unroll 1
  for (int k = 0; k < K; ++k) {
    const STORAGE* from = row(k);
    if (from == nullptr) continue;
    bool odd = false;
#pragma unroll 1
    for (int e = threadIdx.x; e < columns.count; e += THREADS) {
      odd_row[e] = from[(columns.first + e) * step];
      odd |= !is_finite(widen(odd_row[e]));
    }
    if (__syncthreads_or(odd)) {
#pragma unroll 1
      for (int m = threadIdx.x; m < M; m += THREADS) flags[m] = sees(m, k);
      __syncthreads();
      sums.each([&](int m, int n, COMPUTED& sum) {
        if (n < columns.count && flags[m]) {
          const COMPUTED x = widen(odd_row[n]);
          if (!is_finite(x)) sum += weight(m, k) * x;
        }
      });
    }
    __syncthreads();
  }
}

// Sums as RESULT in shared memory, then out of it row by row. row(r): address of row r, null where there is none; value(m,
// x): what is written for the sum x. All threads of the block call this; `room` is theirs until the next
// barrier.
template <int ROWS, int WIDTH, int PITCH, class RESULT_TYPE, class Sums, class Row, class Value>
__device__ __forceinline__ void write_rows(
    Sums& sums, RESULT_TYPE* room, Columns columns, Row row, Value value) {
  sums.round_to(room, PITCH, value);
  __syncthreads();
  constexpr int OF_LINE = ALIGNED ? 16 / (int)sizeof(RESULT_TYPE) : 1, OF_ROW = WIDTH / OF_LINE;
  for (int place = threadIdx.x; place < ROWS * OF_ROW; place += THREADS) {
    const int r = place / OF_ROW, e = place % OF_ROW * OF_LINE;
    RESULT_TYPE* to = row(r);
    if (to == nullptr || e >= columns.count) continue;
    to += columns.first;
    if constexpr (ALIGNED) {
      *reinterpret_cast<uint4*>(to + e) = *reinterpret_cast<const uint4*>(room + r * PITCH + e);
    } else {
      to[e] = room[r * PITCH + e];
    }
  }
}
