// Products of two tiles in shared memory, summed in the registers of a block: by tensor cores (wmma) for half types, by
// a register tile a thread for float and double. Both have one interface:
//
//   clear()                         sums = 0
//   multiply<K>(a, lda, b, ldb)     sums += a . b over K places; no barrier within
//   store(tile, pitch)              sums to shared memory, row by row
//   each(places, f)                 f(row, column, x) for every sum x that this thread holds
//   round_to(room, pitch, places, value)  room[row][column] = value(row, x), in room's type
//   scale_rows(places, factors)     x *= factors[row], factors in shared memory
//
// ALONG_K says in which order a factor lies in shared memory: true for a[m][k] or b[n][k], false for a[k][m] or
// b[k][n]. Pitches are in elements. Rows of 16 bytes times an odd number keep 8 threads that read 8 rows in different
// banks.
#pragma once
#include "runtime/cuda/fragments.cuh"
#include "runtime/cuda/types.cuh"

constexpr int THREADS = WARPS * 32;
// Computed numbers that one access of 128 bits takes.
constexpr int VECTOR = 16 / (int)sizeof(COMPUTED);
constexpr bool TENSOR_CORES = sizeof(STORAGE) == 2;
typedef Vector<COMPUTED, VECTOR> Numbers;

__device__ __forceinline__ bool is_finite(COMPUTED x) { return x * (COMPUTED)0 == (COMPUTED)0; }

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

  template <int K> __device__ __forceinline__ void multiply(const COMPUTED* a, int lda, const COMPUTED* b, int ldb) {
    if (!works()) return;
    if constexpr (A_ALONG_K) {
#pragma unroll 1
      for (int k = 0; k < K; k += VECTOR) {
        Numbers left[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) left[r] = *reinterpret_cast<const Numbers*>(a + row(r) * lda + k);
        if constexpr (B_ALONG_K) {
#pragma unroll
          for (int c = 0; c < COLUMNS; ++c) {
            const Numbers right = *reinterpret_cast<const Numbers*>(b + column(c) * ldb + k);
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
            for (int c = 0; c < COLUMNS / VECTOR; ++c)
              right[c] = *reinterpret_cast<const Numbers*>(b + (k + t) * ldb + column(c * VECTOR));
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
        for (int r = 0; r < ROWS / VECTOR; ++r)
          left[r] = *reinterpret_cast<const Numbers*>(a + k * lda + row(r * VECTOR));
#pragma unroll
        for (int c = 0; c < COLUMNS / VECTOR; ++c)
          right[c] = *reinterpret_cast<const Numbers*>(b + k * ldb + column(c * VECTOR));
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
          for (int c = 0; c < COLUMNS; ++c)
            x[r][c] += left[r / VECTOR].v[r % VECTOR] * right[c / VECTOR].v[c % VECTOR];
      }
    }
  }

  __device__ __forceinline__ void store(COMPUTED* tile, int pitch) const {
    if (!works()) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) tile[row(r) * pitch + column(c)] = x[r][c];
  }

  template <class Places, class F> __device__ __forceinline__ void each(const Places&, F f) {
    if (!works()) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) f(row(r), column(c), x[r][c]);
  }

  // room[row][column] = value(row, x), VECTOR neighbours at once.
  template <class T, class Places, class Value>
  __device__ __forceinline__ void round_to(T* room, int pitch, const Places&, Value value) {
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

  template <class Places> __device__ __forceinline__ void scale_rows(const Places&, const COMPUTED* factors) {
    if (!works()) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const COMPUTED factor = factors[row(r)];
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) x[r][c] *= factor;
    }
  }
};

template <bool ALONG_K, bool LEFT> struct Order;
template <> struct Order<true, true> { typedef nvcuda::wmma::row_major type; };
template <> struct Order<false, true> { typedef nvcuda::wmma::col_major type; };
template <> struct Order<true, false> { typedef nvcuda::wmma::col_major type; };
template <> struct Order<false, false> { typedef nvcuda::wmma::row_major type; };

template <int M, int N, bool A_ALONG_K, bool B_ALONG_K> struct TensorProduct {
  static constexpr WarpGrid GRID = warp_grid(M, N, 16, 16);
  static constexpr int ROWS = M / 16 / GRID.down, COLUMNS = N / 16 / GRID.across;
  static constexpr bool ALL_WORK = GRID.down * GRID.across == WARPS;
  typedef nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> Sums;
  typedef typename Order<A_ALONG_K, true>::type OrderOfA;
  typedef typename Order<B_ALONG_K, false>::type OrderOfB;
  typedef nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, STORAGE, OrderOfA> Left;
  typedef nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, STORAGE, OrderOfB> Right;
  Sums x[ROWS][COLUMNS];

  __device__ __forceinline__ static int warp() { return threadIdx.x / 32; }
  __device__ __forceinline__ static bool works() { return ALL_WORK || warp() < GRID.down * GRID.across; }
  __device__ __forceinline__ static int row() { return warp() / GRID.across * ROWS * 16; }
  __device__ __forceinline__ static int column() { return warp() % GRID.across * COLUMNS * 16; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) nvcuda::wmma::fill_fragment(x[r][c], 0.0f);
  }

  template <int K> __device__ __forceinline__ void multiply(const STORAGE* a, int lda, const STORAGE* b, int ldb) {
    if (!works()) return;
    // Not unrolled: what is loaded ahead would take the registers of the sums.
#pragma unroll 1
    for (int k = 0; k < K; k += 16) {
      Left left[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const int m = row() + r * 16;
        load_shared(left[r], a + (A_ALONG_K ? m * lda + k : k * lda + m), lda);
      }
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        const int n = column() + c * 16;
        Right right;
        load_shared(right, b + (B_ALONG_K ? n * ldb + k : k * ldb + n), ldb);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) nvcuda::wmma::mma_sync(x[r][c], left[r], right, x[r][c]);
      }
    }
  }

  __device__ __forceinline__ void store(float* tile, int pitch) const {
    if (!works()) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c)
        nvcuda::wmma::store_matrix_sync(
            tile + (row() + r * 16) * pitch + column() + c * 16, x[r][c], pitch, nvcuda::wmma::mem_row_major);
  }

  template <class Places, class F> __device__ __forceinline__ void each(const Places& places, F f) {
    if (!works()) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
        for (int e = 0; e < Sums::num_elements; ++e)
          f(row() + r * 16 + places.at[e] / 16, column() + c * 16 + places.at[e] % 16, x[r][c].x[e]);
  }

  template <class T, class Places, class Value>
  __device__ __forceinline__ void round_to(T* room, int pitch, const Places& places, Value value) {
    each(places, [&](int m, int n, float& sum) { room[m * pitch + n] = narrow<T>(value(m, sum)); });
  }

  template <class Places> __device__ __forceinline__ void scale_rows(const Places& places, const float* factors) {
    if (!works()) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float factor[Sums::num_elements];
#pragma unroll
      for (int e = 0; e < Sums::num_elements; ++e) factor[e] = factors[row() + r * 16 + places.at[e] / 16];
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
        for (int e = 0; e < Sums::num_elements; ++e) x[r][c].x[e] *= factor[e];
    }
  }
};

template <bool CORES, int M, int N, bool A, bool B> struct Choose { typedef RegisterProduct<M, N, A, B> type; };
template <int M, int N, bool A, bool B> struct Choose<true, M, N, A, B> { typedef TensorProduct<M, N, A, B> type; };
template <int M, int N, bool A_ALONG_K, bool B_ALONG_K>
using Product = typename Choose<TENSOR_CORES, M, N, A_ALONG_K, B_ALONG_K>::type;

// Which place of a 16 x 16 tile each sum of a thread belongs to (16 row + column). CUDA does not say; the tensor cores
// do.
template <bool CORES> struct Places {
  __device__ __forceinline__ void find(void*) {}
};
template <> struct Places<true> {
  int at[8];
  // scratch: 256 floats of shared memory, whose old contents nobody needs. All threads of the block call this.
  __device__ __forceinline__ void find(void* scratch) {
    float* numbers = reinterpret_cast<float*>(scratch);
    for (int n = threadIdx.x; n < 256; n += THREADS) numbers[n] = (float)n;
    __syncthreads();
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> read;
    nvcuda::wmma::load_matrix_sync(read, numbers, 16, nvcuda::wmma::mem_row_major);
#pragma unroll
    for (int e = 0; e < 8; ++e) at[e] = (int)read.x[e];
  }
};
typedef Places<TENSOR_CORES> PlacesOfSums;
