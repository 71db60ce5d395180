// nvcuda::wmma and mma.sync on the CPU, in place of CUDA's mma.h. Each lane keeps the whole A and B tiles, and 1/32 of the
// sums. Products and sums are float32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
namespace precision { struct tf32; }
enum layout_t { mem_row_major, mem_col_major };

template <class T> struct Element { using type = T; };
template <> struct Element<precision::tf32> { using type = float; };

inline float number(float x) { return x; }
inline float number(__half x) { return __half2float(x); }
inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
  static constexpr bool of_sums = std::is_same_v<Use, accumulator>, is_a = std::is_same_v<Use, matrix_a>;
  static constexpr int rows = is_a || of_sums ? M : K, columns = is_a ? K : N;
  static constexpr int num_elements = of_sums ? M * N / 32 : rows * columns;
  typename Element<T>::type x[num_elements];
};

CUDA_CPU_RAW inline void together() { cuda_cpu::collective(0xffffffffu, 0, cuda_cpu::SYNC, __LINE__); }
// (row, column) of element e of a lane's share of the sums: as the hardware has it for 16 x 16, else one after another.
struct Place { int row, column; };
template <int M, int N> CUDA_CPU_RAW Place place_of(int e) {
  int lane = cuda_cpu::state.current->lane;
  if (M == 16 && N == 16) return {lane / 4 + 8 * (e / 2 % 2), 2 * (lane % 4) + e % 2 + 8 * (e / 4)};
  int i = lane * (M * N / 32) + e;
  return {i / N, i % N};
}

// A tile's `lines` of `length` neighbours are read: by every lane whole, so that no race is missed, or where requests
// are counted by each lane its 16 bytes, as ldmatrix does it.
template <class P> CUDA_CPU_RAW void touch_tile(const P* p, int lines, int length, unsigned stride, uintptr_t code) {
  if (!cuda_cpu::state.profile) {
    for (int i = 0; i < lines; ++i)
      cuda_cpu::touch((uintptr_t)(p + i * stride), length * sizeof(P), false, false, code);
    return;
  }
  int lane = cuda_cpu::state.current->lane, share = lines * length / 32;
  const P* mine = p + lane % lines * stride + lane / lines * share;
  cuda_cpu::touch((uintptr_t)mine, share * sizeof(P), false, false, code);
}

template <class F, class T> CUDA_CPU_RAW void fill_fragment(F& f, T value) {
  for (auto& element : f.x) element = value;
}
template <class Use, int M, int N, int K, class T, class Layout, class P>
CUDA_CPU_RAW __attribute__((noinline)) void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const P* p,
                                                             unsigned stride) {
  using F = fragment<Use, M, N, K, T, Layout>;
  constexpr bool by_rows = std::is_same_v<Layout, row_major>;
  touch_tile(p, by_rows ? F::rows : F::columns, by_rows ? F::columns : F::rows, stride,
             (uintptr_t)__builtin_return_address(0));
  for (int r = 0; r < F::rows; ++r)
    for (int c = 0; c < F::columns; ++c) f.x[r * F::columns + c] = p[by_rows ? r * stride + c : c * stride + r];
  together();
}
template <int M, int N, int K, class T, class P>
void load_matrix_sync(fragment<accumulator, M, N, K, T>& f, const P* p, unsigned stride, layout_t layout) {
  for (int e = 0; e < f.num_elements; ++e) {
    Place at = place_of<M, N>(e);
    f.x[e] = p[layout == mem_row_major ? at.row * stride + at.column : at.column * stride + at.row];
  }
  together();
}
// By rows, two neighbours at a time, as the hardware stores 16 x 16 sums.
template <int M, int N, int K, class T, class P>
CUDA_CPU_RAW __attribute__((noinline)) void store_matrix_sync(P* p, const fragment<accumulator, M, N, K, T>& f,
                                                              unsigned stride, layout_t layout) {
  bool by_rows = layout == mem_row_major;
  int neighbours = by_rows && M == 16 && N == 16 ? 2 : 1;
  for (int e = 0; e < f.num_elements; ++e) {
    Place at = place_of<M, N>(e);
    P* to = p + (by_rows ? at.row * stride + at.column : at.column * stride + at.row);
    if (e % neighbours == 0)
      cuda_cpu::touch((uintptr_t)to, neighbours * sizeof(P), true, false, (uintptr_t)__builtin_return_address(0));
    *to = f.x[e];
  }
  together();
}
template <int M, int N, int K, class TD, class TA, class LA, class TB, class LB>
CUDA_CPU_RAW void mma_sync(fragment<accumulator, M, N, K, TD>& d, const fragment<matrix_a, M, N, K, TA, LA>& a,
                           const fragment<matrix_b, M, N, K, TB, LB>& b, const fragment<accumulator, M, N, K, TD>& c) {
  for (int e = 0; e < d.num_elements; ++e) {
    Place at = place_of<M, N>(e);
    float sum = 0;
    for (int k = 0; k < K; ++k) sum += number(a.x[at.row * K + k]) * number(b.x[k * N + at.column]);
    d.x[e] = TD(number(c.x[e]) + sum);
  }
  together();
}
// Rounds to nearest, ties away from zero, as the GPU's conversion does.
inline float __float_to_tf32(float x) {
  return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
}

}  // namespace wmma
}  // namespace nvcuda

// What PTX's warp instructions do, with the registers laid out as its manual says. Kernels call them under `#ifdef
// CUDA_CPU`, beside their inline PTX. What lanes bring is kept in one of two rooms in turn: a lane that is ahead by one
// instruction waits there for the others.
template <class Room> CUDA_CPU_RAW Room& cuda_cpu_room(Room (&rooms)[2][cuda_cpu::MOST_THREADS / 32]) {
  cuda_cpu::Thread& me = *cuda_cpu::state.current;
  return rooms[me.exchanges++ % 2][me.warp];
}

// d = a (16, 16) @ b (16, 8) + c, T being __half or __nv_bfloat16: mma.sync.aligned.m16n8k16.row.col.
template <class T>
CUDA_CPU_RAW void cuda_cpu_mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                        const float (&c)[4]) {
  struct Factors { float a[16][16], b[8][16]; };
  static Factors rooms[2][cuda_cpu::MOST_THREADS / 32];
  auto& factors = cuda_cpu_room(rooms);
  int lane = cuda_cpu::state.current->lane, group = lane / 4, pair = lane % 4 * 2;
  auto half = [](uint32_t word, int i) { return nvcuda::wmma::number(cuda_cpu_bits<T>((uint16_t)(word >> 16 * i))); };
  for (int i = 0; i < 2; ++i) {
    for (int part = 0; part < 4; ++part) factors.a[group + part % 2 * 8][pair + part / 2 * 8 + i] = half(a[part], i);
    for (int part = 0; part < 2; ++part) factors.b[group][pair + part * 8 + i] = half(b[part], i);
  }
  nvcuda::wmma::together();
  for (int e = 0; e < 4; ++e) {
    const float *row = factors.a[group + e / 2 * 8], *column = factors.b[pair + e % 2];
    float sum = 0;
    for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
    d[e] = c[e] + sum;
  }
}

// Four parts of 8 x 8 numbers, lane 8 i + r bringing the address of row r of part i: ldmatrix.sync.aligned.m8n8.x4.
template <bool TRANSPOSED, class T>
CUDA_CPU_RAW __attribute__((noinline)) void cuda_cpu_ldmatrix(uint4& found, const T* row) {
  struct Rows { uint16_t x[4][8][8]; };
  static Rows rooms[2][cuda_cpu::MOST_THREADS / 32];
  auto& parts = cuda_cpu_room(rooms).x;
  int lane = cuda_cpu::state.current->lane, group = lane / 4, pair = lane % 4 * 2;
  cuda_cpu::touch((uintptr_t)row, 16, false, false, (uintptr_t)__builtin_return_address(0));
  memcpy(parts[lane / 8][lane % 8], row, 16);
  nvcuda::wmma::together();
  uint32_t words[4];
  for (int i = 0; i < 4; ++i) {
    auto& p = parts[i];
    words[i] = TRANSPOSED ? p[pair][group] | (uint32_t)p[pair + 1][group] << 16
                          : p[group][pair] | (uint32_t)p[group][pair + 1] << 16;
  }
  found = make_uint4(words[0], words[1], words[2], words[3]);
}
