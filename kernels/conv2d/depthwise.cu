// Depthwise convolutions, whose channels do not mix. No sum is long enough for tensor cores; a thread has VECTOR
// neighbouring channels, or one element, of the result and goes over the taps.
//
// Constants: STORAGE (type of the images and of the weight), COMPUTED (float, or double for double), INDEX (int, or
// long long where an array is too long for it), THREADS (of a block, at most), VECTOR (more than 1 only where
// multiplier is 1, last is set, channels lie side by side in the source and in the weight, VECTOR divides their number
// and every stride, and all are aligned).
//
// Arguments in common. items: threads with work, elements of the result / VECTOR. channels: of the result. height,
// width: of the source. last: the result lies as (N, H, W, C), else as (N, C, H, W). weight: (K, 1, kernel_h, kernel_w)
// with strides w_out, w_row, w_column. Geometry: of the convolution. multiplier: output channels of an input channel.
// All arrays are the caller's; none is written that is read.
#include "activation/activation.cuh"
#include "runtime/cuda/place.cuh"
#include "runtime/cuda/types.cuh"

namespace {

typedef Vector<STORAGE, VECTOR> Numbers;

__device__ __forceinline__ INDEX item_of_thread() { return (INDEX)blockIdx.x * blockDim.x + threadIdx.x; }

__device__ __forceinline__ void add_bias(COMPUTED (&total)[VECTOR], const STORAGE* bias, INDEX channel) {
  if (!bias) return;
  COMPUTED added[VECTOR];
  load_vector(bias + channel, added);
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane) total[lane] += added[lane];
}

}  // namespace

// out (N, channels, out_height, out_width) = act(bias + weight * source), and the sums before the activation where sums
// is not null; both dense. source: (N, channels / multiplier, height, width). bias: (channels,) or null.
extern "C" __global__ void __launch_bounds__(THREADS, 1) convolve_depthwise(
    const STORAGE* __restrict__ source, const STORAGE* __restrict__ weight, const STORAGE* __restrict__ bias,
    STORAGE* __restrict__ out, STORAGE* __restrict__ sums, INDEX items, int channels, int height, int width,
    int out_height, int out_width, int last, INDEX x_image, INDEX x_channel, INDEX x_row, INDEX x_column, INDEX w_out,
    INDEX w_row, INDEX w_column, int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w,
    int dilation_h, int dilation_w, int multiplier, int activation) {
  INDEX item = item_of_thread();
  if (item >= items) return;
  Place e(item, channels, out_height, out_width, last != 0);
  const STORAGE* image = source + e.image * x_image + e.channel / multiplier * x_channel;
  const STORAGE* filter = weight + e.channel * w_out;
  int top = e.row * stride_h - padding_h, left = e.column * stride_w - padding_w;
  COMPUTED total[VECTOR] = {};
  for (int r = 0; r < kernel_h; ++r) {
    int h = top + r * dilation_h;
    if (h < 0 || h >= height) continue;
    for (int s = 0; s < kernel_w; ++s) {
      int w = left + s * dilation_w;
      if (w < 0 || w >= width) continue;
      Numbers x = *(const Numbers*)(image + h * x_row + w * x_column);
      Numbers f = *(const Numbers*)(filter + r * w_row + s * w_column);
#pragma unroll
      for (int lane = 0; lane < VECTOR; ++lane) total[lane] += widen(x.v[lane]) * widen(f.v[lane]);
    }
  }
  add_bias(total, bias, e.channel);
  Numbers found;
  if (sums) {
#pragma unroll
    for (int lane = 0; lane < VECTOR; ++lane) found.v[lane] = narrow<STORAGE>(total[lane]);
    *(Numbers*)(sums + item * VECTOR) = found;
  }
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane) found.v[lane] = narrow<STORAGE>(activate(total[lane], activation));
  *(Numbers*)(out + item * VECTOR) = found;
}

// The transpose: out (N, channels, out_height, out_width), dense, from source (N, channels * multiplier, height,
// width).
extern "C" __global__ void __launch_bounds__(THREADS, 1) spread_depthwise(
    const STORAGE* __restrict__ source, const STORAGE* __restrict__ weight, const STORAGE* __restrict__ bias,
    STORAGE* __restrict__ out, INDEX items, int channels, int height, int width, int out_height, int out_width,
    int last, INDEX x_image, INDEX x_channel, INDEX x_row, INDEX x_column, INDEX w_out, INDEX w_row, INDEX w_column,
    int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h,
    int dilation_w, int multiplier) {
  INDEX item = item_of_thread();
  if (item >= items) return;
  Place e(item, channels, out_height, out_width, last != 0);
  COMPUTED total[VECTOR] = {};
  for (int m = 0; m < multiplier; ++m) {
    INDEX k = e.channel * multiplier + m;
    const STORAGE* image = source + e.image * x_image + k * x_channel;
    const STORAGE* filter = weight + k * w_out;
    for (int r = 0; r < kernel_h; ++r) {
      int down = e.row + padding_h - r * dilation_h;
      int h = down / stride_h;
      if (down < 0 || h * stride_h != down || h >= height) continue;
      for (int s = 0; s < kernel_w; ++s) {
        int right = e.column + padding_w - s * dilation_w;
        int w = right / stride_w;
        if (right < 0 || w * stride_w != right || w >= width) continue;
        Numbers x = *(const Numbers*)(image + h * x_row + w * x_column);
        Numbers f = *(const Numbers*)(filter + r * w_row + s * w_column);
#pragma unroll
        for (int lane = 0; lane < VECTOR; ++lane) total[lane] += widen(x.v[lane]) * widen(f.v[lane]);
      }
    }
  }
  add_bias(total, bias, e.channel);
  Numbers found;
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane) found.v[lane] = narrow<STORAGE>(total[lane]);
  *(Numbers*)(out + item * VECTOR) = found;
}
