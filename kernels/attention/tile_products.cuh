// Products of two tiles in shared memory, summed in the registers of a block: by tensor cores for half types, by a register
// tile a thread for float and double. Both have one interface:
//
//   clear()                      sums = 0
//   multiply<K>(a, b)            sums += a . b over K places; no barrier within
//   store(tile)                  sums to shared memory
//   each(f)                      f(row, column, x) for every sum x that this thread holds
//   round_to(room, pitch, value) room[row][column] = value(row, x), in room's type
//   scale_rows(factors)          x *= factors[row], factors in shared memory
//
// A tile is a function: tile(row, column) is where a number lies. ALONG_K says in which order a factor lies: true for
// a(m, k) or b(n, k), false for a(k, m) or b(k, n).
#pragma once
#include "runtime/cuda/tensor_cores.cuh"

constexpr int THREADS = WARPS * 32;
// Computed numbers that one access of 128 bits takes.
constexpr int VECTOR = 16 / (int)sizeof(COMPUTED);
constexpr bool TENSOR_CORES = sizeof(STORAGE) == 2;
typedef Vector<COMPUTED, VECTOR> Numbers;

__device__ __forceinline__ bool is_finite(COMPUTED x) { return x * (COMPUTED)0 == (COMPUTED)0; }

// Rows PITCH numbers apart. An odd number of 16 bytes keeps 8 threads that read 16 bytes of 8 rows in different banks.
template <int PITCH> struct Padded {
  STORAGE* from;
  __device__ __forceinline__ STORAGE* operator()(int row, int column) const { return from + row * PITCH + column; }
};

// Which 16 bytes of eight change places in a row of scores for tensor cores, whose rows have no gaps: a different number
// for each of 8 rows, by 4 for two neighbours and by 2 for the next two. So the banks are different that 4 rows of 8 sums
// are stored to, 2 rows of 32 weights, and of which 8 rows of 8 weights are read.
__device__ __forceinline__ int turned(int row) { return (row & 1) << 2 | (row & 2) | (row >> 2 & 1); }

// A tile of scores; VECTOR neighbours are together.
struct ScoreTile {
  COMPUTED* from;
  __device__ __forceinline__ COMPUTED* operator()(int row, int column) const {
    if (TENSOR_CORES) column = (column / VECTOR ^ turned(row)) * VECTOR + column % VECTOR;
    return from + row * PITCH_SCORES + column;
  }
};

// The same memory as STORAGE, which products read: a row's numbers take the place of its scores. 16 bytes are together.
struct WeightTile {
  STORAGE* from;
  __device__ __forceinline__ STORAGE* operator()(int row, int column) const {
    constexpr int LINE = 16 / (int)sizeof(STORAGE);
    if (TENSOR_CORES) column = (column / LINE ^ turned(row)) * LINE + column % LINE;
    return from + row * PITCH_WEIGHTS + column;
  }
};
static_assert(!TENSOR_CORES || (BLOCK_N % 32 == 0 && PITCH_SCORES == BLOCK_N), "a row of scores is whole 128 bytes");

struct WarpGrid {
  int down, across;
};

// How the warps share an m x n tile, each in multiples of unit_m x unit_n: as square as can be; warps may be left over.
constexpr WarpGrid warp_grid(int m, int n, int unit_m, int unit_n) {
  WarpGrid best{1, 1};
  int least = 1 << 30;
  for (int used = WARPS; used >= 1 && least == 1 << 30; used /= 2) {
    for (int across = 1; across <= used; across *= 2) {
      const int down = used / across;
      if (m % (down * unit_m) == 0 && n % (across * unit_n) == 0 && m / down + n / across < least) {
        best = WarpGrid{down, across};
        least = m / down + n / across;
      }
    }
  }
  return best;
}

template <int M, int N, bool A_ALONG_K, bool B_ALONG_K> struct RegisterProduct {
  // A warp is 4 threads down and 8 across: 8 neighbours read 8 rows, or 128 bytes of one.
  static constexpr WarpGrid GRID = warp_grid(M, N, A_ALONG_K ? 4 : 4 * VECTOR, B_ALONG_K ? 8 : 8 * VECTOR);
  static constexpr int DOWN = 4 * GRID.down, ACROSS = 8 * GRID.across, ROWS = M / DOWN, COLUMNS = N / ACROSS;
  static constexpr bool ALL_WORK = GRID.down * GRID.across == WARPS;
  static_assert(ROWS * DOWN == M && COLUMNS * ACROSS == N, "a tile is a multiple of what a warp takes");
  COMPUTED x[ROWS][COLUMNS];

  __device__ __forceinline__ static int warp() { return threadIdx.x / 32; }
  __device__ __forceinline__ static bool works() { return ALL_WORK || warp() < GRID.down * GRID.across; }
  __device__ __forceinline__ static int down() { return warp() / GRID.across * 4 + threadIdx.x % 32 / 8; }
  __device__ __forceinline__ static int across() { return warp() % GRID.across * 8 + threadIdx.x % 8; }
  __device__ __forceinline__ static int row(int r) {
    return A_ALONG_K ? down() + DOWN * r : (r / VECTOR * DOWN + down()) * VECTOR + r % VECTOR;
  }
  __device__ __forceinline__ static int column(int c) {
    return B_ALONG_K ? across() + ACROSS * c : (c / VECTOR * ACROSS + across()) * VECTOR + c % VECTOR;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) x[r][c] = 0;
  }

  template <class Tile> __device__ __forceinline__ static Numbers load(const Tile& tile, int row, int column) {
    return *reinterpret_cast<const Numbers*>(tile(row, column));
  }

  template <int K, class A, class B> __device__ __forceinline__ void multiply(const A& a, const B& b) {
    if (!works()) return;
    if constexpr (A_ALONG_K) {
#pragma unroll 1
      for (int k = 0; k < K; k += VECTOR) {
        Numbers left[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) left[r] = load(a, row(r), k);
        if constexpr (B_ALONG_K) {
#pragma unroll
          for (int c = 0; c < COLUMNS; ++c) {
            const Numbers right = load(b, column(c), k);
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
#pragma unroll
              for (int t = 0; t < VECTOR; ++t) x[r][c] += left[r].v[t] * right.v[t];
          }
        } else {
#pragma unroll
          for (int t = 0; t < VECTOR; ++t) {
            Numbers right[COLUMNS / VECTOR];
#pragma unroll
            for (int c = 0; c < COLUMNS / VECTOR; ++c) right[c] = load(b, k + t, column(c * VECTOR));
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
#pragma unroll
              for (int c = 0; c < COLUMNS; ++c) x[r][c] += left[r].v[t] * right[c / VECTOR].v[c % VECTOR];
          }
        }
      }
    } else {
#pragma unroll 4
      for (int k = 0; k < K; ++k) {
        Numbers left[ROWS / VECTOR], right[COLUMNS / VECTOR];
#pragma unroll
        for (int r = 0; r < ROWS / VECTOR; ++r) left[r] = load(a, k, row(r * VECTOR));
#pragma unroll
        for (int c = 0; c < COLUMNS / VECTOR; ++c) right[c] = load(b, k, column(c * VECTOR));
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
          for (int c = 0; c < COLUMNS; ++c)
            x[r][c] += left[r / VECTOR].v[r % VECTOR] * right[c / VECTOR].v[c % VECTOR];
      }
    }
  }

  __device__ __forceinline__ void store(const ScoreTile& tile) const {
    if (!works()) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) *tile(row(r), column(c)) = x[r][c];
  }

  template <class F> __device__ __forceinline__ void each(F f) {
    if (!works()) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) f(row(r), column(c), x[r][c]);
  }

  // room[row][column] = value(row, x), VECTOR neighbours at once.
  template <class T, class Value> __device__ __forceinline__ void round_to(T* room, int pitch, Value value) {
    static_assert(!B_ALONG_K, "a thread's columns are neighbours");
    if (!works()) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int c = 0; c < COLUMNS; c += VECTOR) {
        Vector<T, VECTOR> made;
#pragma unroll
        for (int t = 0; t < VECTOR; ++t) made.v[t] = narrow<T>(value(row(r), x[r][c + t]));
        *reinterpret_cast<Vector<T, VECTOR>*>(room + row(r) * pitch + column(c)) = made;
      }
  }

  __device__ __forceinline__ void scale_rows(const COMPUTED* factors) {
    if (!works()) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const COMPUTED factor = factors[row(r)];
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) x[r][c] *= factor;
    }
  }
};

template <int M, int N, bool A_ALONG_K, bool B_ALONG_K> struct TensorProduct {
  static constexpr WarpGrid GRID = warp_grid(M, N, 16, 16);
  static constexpr int ROWS = M / 16 / GRID.down, COLUMNS = N / 16 / GRID.across;
  static constexpr bool ALL_WORK = GRID.down * GRID.across == WARPS;
  // A tile of 16 x 16 sums is two products: 8 columns each, of which a thread has 2 neighbours in 2 rows.
  float x[ROWS][COLUMNS][2][4];

  __device__ __forceinline__ static int warp() { return threadIdx.x / 32; }
  __device__ __forceinline__ static int lane() { return threadIdx.x % 32; }
  __device__ __forceinline__ static bool works() { return ALL_WORK || warp() < GRID.down * GRID.across; }
  // Of the first tile of the warp, and of the thread in a tile.
  __device__ __forceinline__ static int first_row() { return warp() / GRID.across * ROWS * 16; }
  __device__ __forceinline__ static int first_column() { return warp() % GRID.across * COLUMNS * 16; }
  __device__ __forceinline__ static int row(int r, int half) { return first_row() + r * 16 + half * 8 + lane() / 4; }
  __device__ __forceinline__ static int column(int c, int side) {
    return first_column() + c * 16 + side * 8 + lane() % 4 * 2;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
        for (int e = 0; e < 8; ++e) x[r][c][e / 4][e % 4] = 0;
  }

  template <int K, class A, class B> __device__ __forceinline__ void multiply(const A& a, const B& b) {
    if (!works()) return;
    // A lane's row of one of four parts: the second one lies lower, the third one to the right, of a; of b the reverse.
    const int in = lane() % 8, odd = lane() / 8 % 2 * 8, late = lane() / 16 * 8;
    // Not unrolled: what is loaded ahead would take the registers of the sums.
#pragma unroll 1
    for (int k = 0; k < K; k += 16) {
      uint4 left[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const int m = first_row() + r * 16;
        if constexpr (A_ALONG_K) left[r] = load_matrices<false>(a(m + odd + in, k + late));
        else left[r] = load_matrices<true>(a(k + late + in, m + odd));
      }
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        const int n = first_column() + c * 16;
        uint4 right;
        if constexpr (B_ALONG_K) right = load_matrices<false>(b(n + late + in, k + odd));
        else right = load_matrices<true>(b(k + odd + in, n + late));
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          TensorCores<STORAGE>::add(x[r][c][0], left[r], right.x, right.y);
          TensorCores<STORAGE>::add(x[r][c][1], left[r], right.z, right.w);
        }
      }
    }
  }

  // f(row, column, two neighbouring sums)
  template <class F> __device__ __forceinline__ void each_pair(F f) const {
    if (!works()) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
          const int side = pair / 2, half = pair % 2;
          const float both[2] = {x[r][c][side][half * 2], x[r][c][side][half * 2 + 1]};
          f(row(r, half), column(c, side), both);
        }
  }

  __device__ __forceinline__ void store(const ScoreTile& tile) const {
    each_pair([&](int m, int n, const float(&both)[2]) { store_vector(tile(m, n), both); });
  }

  template <class F> __device__ __forceinline__ void each(F f) {
    if (!works()) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
        for (int e = 0; e < 8; ++e) f(row(r, e / 2 % 2), column(c, e / 4) + e % 2, x[r][c][e / 4][e % 4]);
  }

  template <class T, class Value> __device__ __forceinline__ void round_to(T* room, int pitch, Value value) const {
    each_pair([&](int m, int n, const float(&both)[2]) {
      const float made[2] = {value(m, both[0]), value(m, both[1])};
      store_vector(room + m * pitch + n, made);
    });
  }

  __device__ __forceinline__ void scale_rows(const float* factors) {
    if (!works()) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const float factor[2] = {factors[row(r, 0)], factors[row(r, 1)]};
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
        for (int e = 0; e < 8; ++e) x[r][c][e / 4][e % 4] *= factor[e / 2 % 2];
    }
  }
};

template <bool CORES, int M, int N, bool A, bool B> struct Choose { typedef RegisterProduct<M, N, A, B> type; };
template <int M, int N, bool A, bool B> struct Choose<true, M, N, A, B> { typedef TensorProduct<M, N, A, B> type; };
template <int M, int N, bool A_ALONG_K, bool B_ALONG_K>
using Product = typename Choose<TENSOR_CORES, M, N, A_ALONG_K, B_ALONG_K>::type;
