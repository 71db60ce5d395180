// What the products of convolutions need around them: the weight in the order in which they read it, sums over pixels,
// and the sums of parts.
//
// Constants: STORAGE (type of the images and of the weight), COMPUTED (float, or double for double), INDEX (int, or
// long long where an array is too long for it), THREADS (of a block, at most), VECTOR (of a thread), CHUNK (lines of a
// packed weight that a thread writes). All arrays are the caller's; none is written that is read.
#include "activation/activation.cuh"
#include "runtime/cuda/types.cuh"

namespace {

typedef Vector<STORAGE, VECTOR> Numbers;

// VECTOR sums in memory, in accesses of 16 bytes.
constexpr int GROUP = VECTOR * (int)sizeof(COMPUTED) > 16 ? 16 / (int)sizeof(COMPUTED) : VECTOR;
typedef Vector<COMPUTED, GROUP> Group;

__device__ __forceinline__ void load_sums(const COMPUTED* from, COMPUTED (&sums)[VECTOR]) {
#pragma unroll
  for (int g = 0; g < VECTOR; g += GROUP) {
    Group found = *(const Group*)(from + g);
#pragma unroll
    for (int lane = 0; lane < GROUP; ++lane) sums[g + lane] = found.v[lane];
  }
}

__device__ __forceinline__ void store_sums(COMPUTED* to, const COMPUTED (&sums)[VECTOR]) {
#pragma unroll
  for (int g = 0; g < VECTOR; g += GROUP) {
    Group made;
#pragma unroll
    for (int lane = 0; lane < GROUP; ++lane) made.v[lane] = sums[g + lane];
    *(Group*)(to + g) = made;
  }
}

// total of the threads of one x, added up in one order; thread y = 0 has it afterwards. blockDim.y is a power of two.
__device__ __forceinline__ void add_over_y(COMPUTED (&total)[VECTOR], COMPUTED (&sums)[VECTOR][THREADS]) {
  int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane) sums[lane][thread] = total[lane];
  for (int half = blockDim.y / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) {
#pragma unroll
      for (int lane = 0; lane < VECTOR; ++lane)
        sums[lane][thread] = total[lane] = total[lane] + sums[lane][thread + half * blockDim.x];
    }
  }
}

}  // namespace

// packed = weight as product.cu reads it: (groups, taps, inner, line), where line is at least `columns`, and what is
// behind these 0. weight: element (group, inner, column, row, tap's column) with strides w_group, w_inner, w_column,
// w_row, w_tap. Threads: columns, the fastest; chunks of inner; groups.
extern "C" __global__ void __launch_bounds__(THREADS, 1) pack_weight(
    const STORAGE* __restrict__ weight, STORAGE* __restrict__ packed, INDEX items, int inner, int columns, int line,
    int kernel_h, int kernel_w, INDEX w_group, INDEX w_inner, INDEX w_column, INDEX w_row, INDEX w_tap) {
  INDEX item = (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
  if (item >= items) return;
  int chunks = (inner + CHUNK - 1) / CHUNK;
  int column = (int)(item % line);
  item /= line;
  int first = (int)(item % chunks) * CHUNK;
  INDEX group = item / chunks;
  int end = first + CHUNK < inner ? first + CHUNK : inner;
  for (int i = first; i < end; ++i)
    for (int r = 0; r < kernel_h; ++r)
      for (int s = 0; s < kernel_w; ++s) {
        STORAGE value = narrow<STORAGE>((COMPUTED)0);
        if (column < columns)
          value = weight[group * w_group + i * w_inner + column * w_column + r * w_row + s * w_tap];
        packed[(((group * kernel_h + r) * kernel_w + s) * inner + i) * line + column] = value;
      }
}

// parts[blockIdx.y, tap, channel] = the sum, over `part` pixels of grad (images, channels, out_height, out_width),
// of grad alone (source null: a bias's gradient, taps 1), or times what the tap meets in the source (images, channels /
// multiplier, height, width): a depthwise weight's gradient. parts: (gridDim.y, taps, channels).
//
// A thread has VECTOR channels: more than 1 only where these lie side by side in grad and in the source, multiplier is
// 1, and both are aligned. A block has blockDim.x of such threads, neighbours (blockDim.x of 1 where pixels lie side by
// side, in place of channels), and blockDim.y pixels at a time, a power of two. Blocks: taps, the fastest, times groups
// of channels; parts.
extern "C" __global__ void __launch_bounds__(THREADS, 1) sums_of_pixels(
    const STORAGE* __restrict__ grad, const STORAGE* __restrict__ source, COMPUTED* __restrict__ parts, int images,
    int channels, int height, int width, int out_height, int out_width, INDEX part, INDEX g_image, INDEX g_channel,
    INDEX g_row, INDEX g_column, INDEX x_image, INDEX x_channel, INDEX x_row, INDEX x_column, int kernel_h,
    int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w,
    int multiplier) {
  __shared__ COMPUTED sums[VECTOR][THREADS];
  int taps = kernel_h * kernel_w;
  int tap = blockIdx.x % taps;
  int channel = (blockIdx.x / taps * blockDim.x + threadIdx.x) * VECTOR;
  int down = tap / kernel_w * dilation_h - padding_h, right = tap % kernel_w * dilation_w - padding_w;
  INDEX plane = (INDEX)out_height * out_width;
  INDEX first = blockIdx.y * part, end = plane * images;
  end = end - first < part ? end : first + part;
  const STORAGE* of_grad = grad + channel * g_channel;
  const STORAGE* of_source = source ? source + channel / multiplier * x_channel : nullptr;
  // A pixel's place, and how far the thread's next one is: no division for each.
  INDEX pixel = first + threadIdx.y;
  INDEX image = pixel / plane, i = pixel % plane / out_width, j = pixel % plane % out_width;
  INDEX by_image = blockDim.y / plane, by_row = blockDim.y % plane / out_width, by = blockDim.y % plane % out_width;
  COMPUTED total[VECTOR] = {};
  if (channel < channels) {
#pragma unroll 4
    for (; pixel < end; pixel += blockDim.y) {
      Numbers g = *(const Numbers*)(of_grad + image * g_image + i * g_row + j * g_column);
      if (of_source) {
        INDEX h = i * stride_h + down, w = j * stride_w + right;
        if (h >= 0 && h < height && w >= 0 && w < width) {
          Numbers x = *(const Numbers*)(of_source + image * x_image + h * x_row + w * x_column);
#pragma unroll
          for (int lane = 0; lane < VECTOR; ++lane) total[lane] += widen(g.v[lane]) * widen(x.v[lane]);
        }
      } else {
#pragma unroll
        for (int lane = 0; lane < VECTOR; ++lane) total[lane] += widen(g.v[lane]);
      }
      j += by;
      if (j >= out_width) j -= out_width, ++i;
      i += by_row;
      if (i >= out_height) i -= out_height, ++image;
      image += by_image;
    }
  }
  add_over_y(total, sums);
  if (threadIdx.y == 0 && channel < channels)
    store_sums(parts + ((INDEX)blockIdx.y * taps + tap) * channels + channel, total);
}

// out = the sum over the parts: thread y of a block takes part y, y + blockDim.y, ... parts: (count, whole), each
// counted as (outer, taps, inner). out: those elements with strides o_outer, o_tap, o_inner. A thread has VECTOR of
// them: more than 1 only where o_inner is 1, VECTOR divides inner and the other strides, and out is aligned. items:
// whole / VECTOR.
extern "C" __global__ void __launch_bounds__(THREADS, 1) add_parts(
    const COMPUTED* __restrict__ parts, STORAGE* __restrict__ out, INDEX items, int count, int taps, int inner,
    INDEX o_outer, INDEX o_tap, INDEX o_inner) {
  __shared__ COMPUTED sums[VECTOR][THREADS];
  INDEX item = (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
  COMPUTED total[VECTOR] = {};
  if (item < items) {
#pragma unroll 4
    for (int part = threadIdx.y; part < count; part += blockDim.y) {
      COMPUTED more[VECTOR];
      load_sums(parts + (part * items + item) * VECTOR, more);
#pragma unroll
      for (int lane = 0; lane < VECTOR; ++lane) total[lane] += more[lane];
    }
  }
  add_over_y(total, sums);
  if (threadIdx.y || item >= items) return;
  INDEX i = item * VECTOR % inner, rest = item * VECTOR / inner;
  store_vector(out + rest / taps * o_outer + rest % taps * o_tap + i * o_inner, total);
}

// out = act(bias + the sum over the parts, in their order), and what is before the activation where sums is not null.
// parts: (count, elements of out), in the order in which they lie in out and sums. bias: (channels,) or null. plane:
// elements from a channel to the next one. A thread has VECTOR elements: more than 1 only where plane is 1, VECTOR
// divides channels, and the bias is aligned. items: elements / VECTOR.
extern "C" __global__ void __launch_bounds__(THREADS, 1) finish_parts(
    const COMPUTED* __restrict__ parts, const STORAGE* __restrict__ bias, STORAGE* __restrict__ out,
    STORAGE* __restrict__ sums, INDEX items, int count, int channels, INDEX plane, int activation) {
  INDEX item = (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
  if (item >= items) return;
  COMPUTED total[VECTOR] = {};
#pragma unroll 4
  for (int part = 0; part < count; ++part) {
    COMPUTED more[VECTOR];
    load_sums(parts + (part * items + item) * VECTOR, more);
#pragma unroll
    for (int lane = 0; lane < VECTOR; ++lane) total[lane] += more[lane];
  }
  if (bias) {
    COMPUTED added[VECTOR];
    load_vector(bias + item * VECTOR / plane % channels, added);
#pragma unroll
    for (int lane = 0; lane < VECTOR; ++lane) total[lane] += added[lane];
  }
  if (sums) store_vector(sums + item * VECTOR, total);
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane) total[lane] = activate(total[lane], activation);
  store_vector(out + item * VECTOR, total);
}
