// The gradient of a convolution's weight as a matrix product: output channels by taps and channels, summed over pixels.
// The pixels are cut into parts, whose sums are added up in one order by add_parts of sums.cu: no atomics.
//
// Constants: those of product.cuh, LAST = 1. VECTOR > 1 only where the channels of a group lie side by side in both
// images, VECTOR divides their numbers and every stride, and both are aligned to 16 bytes.
#include "conv2d/product.cuh"

namespace {

// No offset in an array: strides may be negative.
#define NO_PLACE ((INDEX)(sizeof(INDEX) == 4 ? 0x7fffffffLL : 0x7fffffffffffffffLL))

static_assert(INNER <= THREADS, "each thread finds one pixel of a step at most");

// One pixel at a time is read along its neighbours where channels lie apart: tensor cores then take lines of a channel.
constexpr bool ALONG = CORES != 0 && VECTOR == 1;
typedef Sums<ALONG, ALONG> Product;

// What a step of INNER pixels reads.
struct Pixels {
  Place place[INNER];  // in the source, of tap (0, 0)
  INDEX grad[INNER];   // in grad, NO_PLACE behind the last pixel
};

// The items of one operand that a thread moves, of SIDE rows (or columns): (inner place, place along the side).
template <int SIDE> struct Items {
  typedef Across<SIDE, VECTOR == 1 ? WIDE : VECTOR> Vectors;
  static constexpr int COUNT = VECTOR == 1 ? SIDE * INNER / THREADS : Vectors::ITEMS;
  static __device__ __forceinline__ int inner(int i) {
    int item = i * THREADS + threadIdx.x;
    if (VECTOR > 1) return Vectors::inner(item);
    if (CORES) return item % INNER;
    return item / 32 % (INNER / 8) * 8 + item % 8;  // eight pixels, four channels of each, in different banks
  }
  static __device__ __forceinline__ int side(int i) {
    int item = i * THREADS + threadIdx.x;
    if (VECTOR > 1) return Vectors::vector(item) * VECTOR;
    if (CORES) return item / INNER;
    return item / 32 / (INNER / 8) * 4 + item % 32 / 8;
  }
  template <class Tile> static __device__ __forceinline__ void keep(STORAGE* tile, const Read (&from)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) *(Read*)(tile + Tile::place(side(i), inner(i))) = from[i];
  }
};

}  // namespace

// parts[blockIdx.y] = what `part` pixels give to the weight's gradient, as (groups, out_channels, taps, in_channels), or
// with taps_fastest, which VECTOR 1 alone may have, as (groups, out_channels, in_channels, taps).
//
// grad: (images, groups * out_channels, out_height, out_width) with strides g_image to g_column. source: (images,
// groups * in_channels, height, width) with strides x_image to x_column. parts: (gridDim.y, whole), whole the weight's
// elements. All are the caller's. part: pixels of a part, a multiple of INNER. in_channels, out_channels: of a group.
// Geometry as in product.cu. Blocks: rows of tiles, the fastest, times columns of tiles; parts; groups.
extern "C" __global__ void __launch_bounds__(THREADS, 1) weight_gradient_of_parts(
    const STORAGE* __restrict__ grad, const STORAGE* __restrict__ source, COMPUTED* __restrict__ parts, int images,
    int in_channels, int out_channels, int height, int width, int out_height, int out_width, int taps_fastest, INDEX part,
    INDEX whole, INDEX g_image, INDEX g_channel, INDEX g_row, INDEX g_column, INDEX x_image, INDEX x_channel, INDEX x_row,
    INDEX x_column, int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w,
    int dilation_h, int dilation_w) {
  __shared__ __align__(32) unsigned char memory[Memory<Product>::BYTES];
  __shared__ Pixels pixels[2];
  __shared__ Place terms[VECTOR == 1 ? TILE_COLUMNS : 1];

  typedef Items<TILE_ROWS> OfGrad;
  typedef Items<TILE_COLUMNS> OfSource;
  int row_blocks = (out_channels + TILE_ROWS - 1) / TILE_ROWS;
  int first_row = blockIdx.x % row_blocks * TILE_ROWS, first_term = blockIdx.x / row_blocks * TILE_COLUMNS;
  int all_terms = kernel_h * kernel_w * in_channels;
  INDEX group = blockIdx.z;
  INDEX plane = (INDEX)out_height * out_width;
  INDEX first_pixel = blockIdx.y * part;
  INDEX rest = plane * images - first_pixel;
  int steps = (int)(((rest < part ? rest : part) + INNER - 1) / INNER);
  const STORAGE* of_group = grad + group * out_channels * g_channel;

  auto term_of = [&](int column) {
    int term = first_term + column;
    bool turned = VECTOR == 1 && taps_fastest;
    int taps = kernel_h * kernel_w;
    int tap = turned ? term % taps : term / in_channels, c = turned ? term / taps : term % in_channels;
    Place p;
    p.row = tap / kernel_w * dilation_h - padding_h;
    p.column = tap % kernel_w * dilation_w - padding_w;
    p.at = p.row * x_row + p.column * x_column + (group * in_channels + c) * x_channel;
    if (term >= all_terms) p.row = NOWHERE;
    return p;
  };
  auto find_pixels = [&](int step) {
    int k = threadIdx.x;
    if (k < INNER) {
      INDEX pixel = first_pixel + (INDEX)step * INNER + k;
      INDEX image = pixel / plane, in_plane = pixel % plane;
      INDEX i = in_plane / out_width, j = in_plane % out_width;
      bool exists = image < images;
      Place p;
      p.row = exists ? (int)i * stride_h : 2 * NOWHERE;
      p.column = (int)j * stride_w;
      p.at = image * x_image + i * stride_h * x_row + j * stride_w * x_column;
      pixels[step % 2].place[k] = p;
      pixels[step % 2].grad[k] = exists ? image * g_image + i * g_row + j * g_column : NO_PLACE;
    }
  };

  Read of_grad[OfGrad::COUNT], of_source[OfSource::COUNT];
  Place own[VECTOR == 1 ? 1 : OfSource::COUNT];
  if (VECTOR == 1) {
    for (int column = threadIdx.x; column < TILE_COLUMNS; column += THREADS) terms[column] = term_of(column);
  } else {
#pragma unroll
    for (int i = 0; i < OfSource::COUNT; ++i) own[VECTOR == 1 ? 0 : i] = term_of(OfSource::side(i));
  }
  auto fetch = [&](int step) {
    const Pixels& now = pixels[step % 2];
#pragma unroll
    for (int i = 0; i < OfGrad::COUNT; ++i) {
      INDEX at = now.grad[OfGrad::inner(i)];
      int channel = first_row + OfGrad::side(i);
      of_grad[i] = read_if<Read>(at != NO_PLACE && channel < out_channels, of_group + (at + channel * g_channel));
    }
#pragma unroll
    for (int i = 0; i < OfSource::COUNT; ++i) {
      Place pixel = now.place[OfSource::inner(i)];
      Place term = VECTOR == 1 ? terms[OfSource::side(i)] : own[VECTOR == 1 ? 0 : i];
      of_source[i] = read_if<Read>(meets(pixel, term, height, width), source + (pixel.at + term.at));
    }
  };

  STORAGE* operands = (STORAGE*)memory;
  constexpr int BUFFER = Product::A::SIZE + Product::B::SIZE;
  Product product;
  product.clear();
  find_pixels(0);
  if (steps > 1) find_pixels(1);
  __syncthreads();
  fetch(0);
  OfGrad::keep<Product::A>(operands, of_grad);
  OfSource::keep<Product::B>(operands + Product::A::SIZE, of_source);
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    bool more = step + 1 < steps;
    if (more) fetch(step + 1);
    const STORAGE* now = operands + step % 2 * BUFFER;
    product.multiply(now, now + Product::A::SIZE);
    STORAGE* next = operands + (step + 1) % 2 * BUFFER;
    if (more) {
      OfGrad::keep<Product::A>(next, of_grad);
      OfSource::keep<Product::B>(next + Product::A::SIZE, of_source);
    }
    if (step + 2 < steps) find_pixels(step + 2);
    __syncthreads();
  }

  COMPUTED* staging = (COMPUTED*)memory;
  COMPUTED* found = parts + blockIdx.y * whole + group * out_channels * all_terms;
#pragma unroll
  for (int slice = 0; slice < Product::SLICES; ++slice) {
    if (slice) __syncthreads();
    product.stage(slice, staging);
    __syncthreads();
    int first = first_term + slice * Product::SLICE;
    if constexpr (VECTOR > 1) {
      constexpr int OF_ROW = Product::SLICE / WIDE_SUMS;
#pragma unroll 1
      for (int item = threadIdx.x; item < TILE_ROWS * OF_ROW; item += THREADS) {
        int row = item / OF_ROW, column = item % OF_ROW * WIDE_SUMS;
        if (first_row + row < out_channels && first + column < all_terms)
          *(WideSums*)(found + (INDEX)(first_row + row) * all_terms + first + column) =
              *(const WideSums*)(staging + row * Product::PITCH + column);
      }
    } else {
#pragma unroll 1
      for (int item = threadIdx.x; item < TILE_ROWS * Product::SLICE; item += THREADS) {
        int row = item / Product::SLICE, column = item % Product::SLICE;
        if (first_row + row < out_channels && first + column < all_terms)
          found[(INDEX)(first_row + row) * all_terms + first + column] = staging[row * Product::PITCH + column];
      }
    }
  }
}
