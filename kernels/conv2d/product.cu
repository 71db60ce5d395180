// Convolutions as matrix products (implicit GEMM): no image of patches is ever made. The transpose of a convolution in
// its image, which is the gradient of x and conv_transpose2d, is the same product for each phase of its strides.
//
// Constants: those of product.cuh. VECTOR > 1 only where the channels of a group lie side by side in
// the source, VECTOR divides their number and every stride, and the source is aligned to 16 bytes. WRITE: elements that
// are written at once, WIDE only where that is so of the result, and the bias is aligned.
#include "activation/activation.cuh"
#include "conv2d/product.cuh"

static_assert(WRITE == 1 || (WRITE == WIDE && LAST), "one element, or 16 bytes of neighbouring channels");

namespace {

typedef Sums<(CORES != 0 && VECTOR > 1), false> Product;

// The taps that a phase meets, in one dimension: coordinates phase, phase + stride, ... of the transpose's result all
// meet taps first, first + step, ..., and the source's coordinate begin + their number, less (dilation / common) a tap.
struct Phase {
  int places, first, taps, begin, step, move;

  __device__ Phase(int phase, int size, int kernel, int stride, int padding, int dilation, int common) {
    step = stride / common;
    move = -(dilation / common);
    first = kernel;
    for (int r = 0; r < step && r < kernel; ++r)
      if ((phase + padding - r * dilation) % stride == 0) first = r;
    taps = (kernel - first + step - 1) / step;
    // Exact where there are taps; without any it is not read.
    begin = (phase + padding - first * dilation) / stride;
    places = size > phase ? (size - phase + stride - 1) / stride : 0;
  }
};

// What a step of INNER terms reads: where the taps and channels of its vectors are, and their lines of the weight.
struct Terms {
  Place place[INNER / VECTOR];
  INDEX line[INNER / VECTOR];  // -1 behind the last term
};

// A thread's part of the operands on their way to shared memory.
struct Load {
  static constexpr int SOURCE_ITEMS = TILE_ROWS * INNER / VECTOR / THREADS;
  typedef Across<TILE_COLUMNS, WIDE> Weights;
  Read source[SOURCE_ITEMS];
  ReadWide weight[Weights::ITEMS];
};

// Which pixel of the tile and which vector of the step source item i of this thread is.
__device__ __forceinline__ int row_of(int i) {
  int item = i * THREADS + threadIdx.x;
  if (VECTOR == 1) return item % TILE_ROWS;
  if (CORES) return item / 32 * 8 + item % 8;  // eight lines of 64 bytes, whose vectors lie in different banks
  return item / 32 % (TILE_ROWS / 16) * 16 + item % 32 / 2;  // sixteen pixels, two vectors of each: 32 bytes of memory
}
__device__ __forceinline__ int vector_of(int i) {
  int item = i * THREADS + threadIdx.x;
  if (VECTOR == 1) return item / TILE_ROWS;
  if (CORES) return item % 32 / 8;
  return item / 32 / (TILE_ROWS / 16) * 2 + item % 2;
}

}  // namespace

// out = act(bias + weight * source), and the sums before the activation where sums is not null, laid out as out is.
// Where parts is not null, the steps are cut into `splits` shares, and parts (splits, whole) is all that is written:
// what each share gives to out's elements, in the order in which these lie; finish_parts of sums.cu adds them up.
//
// source: (images, C, height, width) with strides x_image to x_column. weight: packed as by pack_weight, (groups, taps,
// in_channels, weight_line), a multiple of TILE_COLUMNS in a line and zeros behind out_channels. bias: (groups *
// out_channels,) or null. out, sums: (images, K, out_height, out_width) with strides y_image to y_column. All are the
// caller's. in_channels, out_channels: of a group. kernel, stride, padding (top, left), dilation: of the convolution;
// common_h, common_w: greatest common divisors of stride and dilation. transposed: source is of the convolution's
// output's shape, and out of its image's.
// Blocks: columns of tiles, the fastest, times rows of tiles; phases (stride_h * stride_w where transposed, else 1);
// splits, the fastest, times groups.
extern "C" __global__ void __launch_bounds__(THREADS, 1) convolve(
    const STORAGE* __restrict__ source, const STORAGE* __restrict__ weight, const STORAGE* __restrict__ bias,
    STORAGE* __restrict__ out, STORAGE* __restrict__ sums, COMPUTED* __restrict__ parts, INDEX whole, int splits,
    int images, int in_channels, int out_channels, int height,
    int width, int out_height, int out_width, INDEX weight_line, INDEX x_image, INDEX x_channel, INDEX x_row,
    INDEX x_column, INDEX y_image, INDEX y_channel, INDEX y_row, INDEX y_column, int kernel_h, int kernel_w,
    int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w, int common_h,
    int common_w, int transposed, int activation) {
  __shared__ __align__(32) unsigned char memory[Memory<Product>::BYTES];
  __shared__ Terms terms[2];
  __shared__ INDEX targets[TILE_ROWS];

  // ----- which taps, which pixels ----------------------------------------------------------------------------------
  int column_blocks = (out_channels + TILE_COLUMNS - 1) / TILE_COLUMNS;
  int first_channel = blockIdx.x % column_blocks * TILE_COLUMNS;
  INDEX first_pixel = (INDEX)(blockIdx.x / column_blocks) * TILE_ROWS;
  INDEX group = blockIdx.z / splits;
  int split = blockIdx.z % splits;
  int phase_h = transposed ? blockIdx.y / stride_w : 0, phase_w = transposed ? blockIdx.y % stride_w : 0;
  int apart_h = transposed ? stride_h : 1, apart_w = transposed ? stride_w : 1;
  Phase down(phase_h, out_height, kernel_h, apart_h, padding_h, dilation_h, transposed ? common_h : 1);
  Phase along(phase_w, out_width, kernel_w, apart_w, padding_w, dilation_w, transposed ? common_w : 1);
  if (!transposed) {
    down.first = along.first = 0;
    down.taps = kernel_h;
    along.taps = kernel_w;
    down.begin = -padding_h;
    along.begin = -padding_w;
    down.move = dilation_h;
    along.move = dilation_w;
  }
  INDEX plane = (INDEX)down.places * along.places;
  INDEX pixels = plane * images;
  if (first_pixel >= pixels) return;  // a phase of fewer pixels than the largest
  int step_h = transposed ? 1 : stride_h, step_w = transposed ? 1 : stride_w;

  for (int row = threadIdx.x; row < TILE_ROWS; row += THREADS) {
    INDEX pixel = first_pixel + row;
    INDEX in_plane = pixel % plane;
    INDEX i = in_plane / along.places, j = in_plane % along.places;
    INDEX at = pixel / plane * y_image + (phase_h + i * apart_h) * y_row + (phase_w + j * apart_w) * y_column;
    targets[row] = pixel < pixels ? at : -1;
  }

  Place pixel_of[Load::SOURCE_ITEMS];
#pragma unroll
  for (int i = 0; i < (VECTOR == 1 ? 1 : Load::SOURCE_ITEMS); ++i) {
    INDEX pixel = first_pixel + row_of(i);
    INDEX in_plane = pixel % plane;
    Place& p = pixel_of[i];
    p.row = (int)(in_plane / along.places) * step_h + down.begin;
    p.column = (int)(in_plane % along.places) * step_w + along.begin;
    p.at = pixel / plane * x_image + p.row * x_row + p.column * x_column + group * in_channels * x_channel;
    if (pixel >= pixels) p.row = NOWHERE;
  }

  // ----- the steps -------------------------------------------------------------------------------------------------
  unsigned all_terms = down.taps * along.taps * in_channels;
  int all_steps = (all_terms + INNER - 1) / INNER;
  int share = (all_steps + splits - 1) / splits;
  int begin = split * share, steps = begin + share < all_steps ? begin + share : all_steps;
  const STORAGE* filters = weight + group * kernel_h * kernel_w * in_channels * weight_line + first_channel;

  auto find_terms = [&](int step) {
    if (threadIdx.x < INNER / VECTOR) {
      unsigned term = step * INNER + threadIdx.x * VECTOR;
      unsigned tap = term / (unsigned)in_channels;
      int c = term % (unsigned)in_channels, a = tap / (unsigned)along.taps, b = tap % (unsigned)along.taps;
      bool exists = term < all_terms;
      Place p;
      p.row = exists ? a * down.move : 2 * NOWHERE;
      p.column = b * along.move;
      p.at = p.row * x_row + p.column * x_column + c * x_channel;
      INDEX line = (INDEX)((down.first + a * down.step) * kernel_w + along.first + b * along.step) * in_channels + c;
      terms[step % 2].place[threadIdx.x] = p;
      terms[step % 2].line[threadIdx.x] = exists ? line : -1;
    }
  };

  Load load;
  auto fetch = [&](int step) {
    const Terms& now = terms[step % 2];
#pragma unroll
    for (int i = 0; i < Load::SOURCE_ITEMS; ++i) {
      const Place& p = pixel_of[VECTOR == 1 ? 0 : i];
      Place term = now.place[vector_of(i)];
      load.source[i] = read_if<Read>(meets(p, term, height, width), source + (p.at + term.at));
    }
#pragma unroll
    for (int i = 0; i < Load::Weights::ITEMS; ++i) {
      int item = i * THREADS + threadIdx.x;
      int k = Load::Weights::inner(item);
      INDEX line = now.line[k / VECTOR];
      const STORAGE* from = filters + (line + k % VECTOR) * weight_line + Load::Weights::vector(item) * WIDE;
      load.weight[i] = read_if<ReadWide>(line >= 0, from);
    }
  };
  auto keep = [&](STORAGE* a, STORAGE* b) {
#pragma unroll
    for (int i = 0; i < Load::SOURCE_ITEMS; ++i) {
      int row = row_of(i), k = vector_of(i) * VECTOR;
      if (CORES && VECTOR > 1) {
        *(Read*)(a + Product::A::place(row, k)) = load.source[i];
      } else {
#pragma unroll
        for (int lane = 0; lane < VECTOR; ++lane)
          a[Product::A::place(row, k + lane)] = reinterpret_cast<const STORAGE*>(&load.source[i])[lane];
      }
    }
#pragma unroll
    for (int i = 0; i < Load::Weights::ITEMS; ++i) {
      int item = i * THREADS + threadIdx.x;
      int column = Load::Weights::vector(item) * WIDE;
      *(ReadWide*)(b + Product::B::place(column, Load::Weights::inner(item))) = load.weight[i];
    }
  };

  STORAGE* operands = (STORAGE*)memory;
  constexpr int BUFFER = Product::A::SIZE + Product::B::SIZE;
  Product product;
  product.clear();
  if (begin < steps) find_terms(begin);
  if (begin + 1 < steps) find_terms(begin + 1);
  __syncthreads();
  if (begin < steps) {
    STORAGE* first = operands + begin % 2 * BUFFER;
    fetch(begin);
    keep(first, first + Product::A::SIZE);
  }
  __syncthreads();
  for (int step = begin; step < steps; ++step) {
    bool more = step + 1 < steps;
    if (more) fetch(step + 1);
    const STORAGE* now = operands + step % 2 * BUFFER;
    product.multiply(now, now + Product::A::SIZE);
    STORAGE* next = operands + (step + 1) % 2 * BUFFER;
    if (more) keep(next, next + Product::A::SIZE);
    if (step + 2 < steps) find_terms(step + 2);
    __syncthreads();
  }

  // ----- bias, activation, out -------------------------------------------------------------------------------------
  COMPUTED* staging = (COMPUTED*)memory;
  INDEX channel_of_group = group * out_channels;
  if (parts) parts += split * whole;
#pragma unroll
  for (int slice = 0; slice < Product::SLICES; ++slice) {
    if (slice) __syncthreads();
    product.stage(slice, staging);
    __syncthreads();
    int first = first_channel + slice * Product::SLICE;
    if constexpr (WRITE > 1) {
      // A thread has one vector of channels, of several pixels.
      constexpr int OF_ROW = Product::SLICE / WIDE;
      int column = threadIdx.x % OF_ROW * WIDE;
      int channel = first + column;
      COMPUTED added[WIDE] = {};
      if (bias && channel < out_channels) load_vector(bias + channel_of_group + channel, added);
#pragma unroll 1
      for (int row = threadIdx.x / OF_ROW; row < TILE_ROWS; row += THREADS / OF_ROW) {
        INDEX target = targets[row];
        if (target < 0 || channel >= out_channels) continue;
        INDEX to = target + (channel_of_group + channel) * y_channel;
        COMPUTED total[WIDE];
        read_sums<WIDE, OF_ROW>(staging + row * Product::PITCH + column, total);
        if (parts) {
#pragma unroll
          for (int lane = 0; lane < WIDE; lane += WIDE_SUMS) {
            WideSums share_of;
#pragma unroll
            for (int k = 0; k < WIDE_SUMS; ++k) share_of.v[k] = total[lane + k];
            *(WideSums*)(parts + to + lane) = share_of;
          }
          continue;
        }
        Wide found, before;
#pragma unroll
        for (int lane = 0; lane < WIDE; ++lane) {
          total[lane] += added[lane];
          before.v[lane] = narrow<STORAGE>(total[lane]);
          found.v[lane] = narrow<STORAGE>(activate(total[lane], activation));
        }
        if (sums) *(Wide*)(sums + to) = before;
        *(Wide*)(out + to) = found;
      }
    } else {
      constexpr int SIDE = LAST ? Product::SLICE : TILE_ROWS;
#pragma unroll 1
      for (int item = threadIdx.x; item < TILE_ROWS * Product::SLICE; item += THREADS) {
        int row = LAST ? item / SIDE : item % SIDE, column = LAST ? item % SIDE : item / SIDE;
        int channel = first + column;
        INDEX target = targets[row];
        if (target < 0 || channel >= out_channels) continue;
        COMPUTED total = staging[LAST ? row * Product::PITCH + column : column * Product::PITCH + row];
        INDEX to = target + (channel_of_group + channel) * y_channel;
        if (parts) {
          parts[to] = total;
          continue;
        }
        if (bias) total += widen(bias[channel_of_group + channel]);
        if (sums) sums[to] = narrow<STORAGE>(total);
        out[to] = narrow<STORAGE>(activate(total, activation));
      }
    }
  }
}
