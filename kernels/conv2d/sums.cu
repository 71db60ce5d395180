// What the products of convolutions need around them: the weight in the order in which they read it, sums over pixels,
// and the sums of parts.
//
// Constants: STORAGE (type of the images and of the weight), COMPUTED (float, or double for double), INDEX (int, or long
// long where an array is too long for it), THREADS (of a block, at most), CHUNK (lines of a packed weight that a thread
// writes). All arrays are the caller's; none is written that is read.
#include "runtime/cuda/types.cuh"

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

// parts[blockIdx.y, channel * taps + tap] = the sum, over `part` pixels of grad (images, channels, out_height, out_width),
// of grad alone (source null: a bias's gradient, taps 1), or times what the tap meets in the source (images, channels /
// multiplier, height, width): a depthwise weight's gradient. parts: (gridDim.y, channels * taps).
//
// A block has blockDim.x neighbouring channels (blockDim.x of 1 where pixels lie side by side, in place of channels) and
// blockDim.y pixels at a time. Blocks: taps, the fastest, times groups of channels; parts. Threads: a power of two.
extern "C" __global__ void __launch_bounds__(THREADS, 1) sums_of_pixels(
    const STORAGE* __restrict__ grad, const STORAGE* __restrict__ source, COMPUTED* __restrict__ parts, int images,
    int channels, int height, int width, int out_height, int out_width, INDEX part, INDEX g_image, INDEX g_channel,
    INDEX g_row, INDEX g_column, INDEX x_image, INDEX x_channel, INDEX x_row, INDEX x_column, int kernel_h,
    int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w,
    int multiplier) {
  __shared__ COMPUTED sums[THREADS];
  int taps = kernel_h * kernel_w;
  int tap = blockIdx.x % taps;
  int channel = blockIdx.x / taps * blockDim.x + threadIdx.x;
  int down = tap / kernel_w * dilation_h - padding_h, right = tap % kernel_w * dilation_w - padding_w;
  INDEX plane = (INDEX)out_height * out_width;
  INDEX first = blockIdx.y * part, end = plane * images;
  end = end - first < part ? end : first + part;
  const STORAGE* of_grad = grad + channel * g_channel;
  const STORAGE* of_source = source ? source + channel / multiplier * x_channel : nullptr;
  COMPUTED total = 0;
  if (channel < channels)
    for (INDEX pixel = first + threadIdx.y; pixel < end; pixel += blockDim.y) {
      INDEX image = pixel / plane, in_plane = pixel % plane;
      INDEX i = in_plane / out_width, j = in_plane % out_width;
      COMPUTED g = widen(of_grad[image * g_image + i * g_row + j * g_column]);
      if (of_source) {
        INDEX h = i * stride_h + down, w = j * stride_w + right;
        if (h >= 0 && h < height && w >= 0 && w < width)
          total += g * widen(of_source[image * x_image + h * x_row + w * x_column]);
      } else {
        total += g;
      }
    }
  int thread = threadIdx.y * blockDim.x + threadIdx.x;
  sums[thread] = total;
  for (int half = blockDim.y / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) sums[thread] = total = total + sums[thread + half * blockDim.x];
  }
  if (threadIdx.y == 0 && channel < channels)
    parts[(INDEX)blockIdx.y * channels * taps + (INDEX)channel * taps + tap] = total;
}

// out = the sum over the parts, in their order. parts: (count, whole), each counted as (outer, taps, inner). out: those
// elements with strides o_outer, o_tap, o_inner.
extern "C" __global__ void __launch_bounds__(THREADS, 1) add_parts(
    const COMPUTED* __restrict__ parts, STORAGE* __restrict__ out, INDEX whole, int count, int taps, int inner,
    INDEX o_outer, INDEX o_tap, INDEX o_inner) {
  INDEX item = (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
  if (item >= whole) return;
  COMPUTED total = 0;
#pragma unroll 4
  for (int part = 0; part < count; ++part) total += parts[part * whole + item];
  INDEX i = item % inner, rest = item / inner;
  out[rest / taps * o_outer + rest % taps * o_tap + i * o_inner] = narrow<STORAGE>(total);
}
