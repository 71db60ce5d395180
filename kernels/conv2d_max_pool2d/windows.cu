// What conv2d_max_pool2d does between the convolution and its result: the largest number of each window with the tap
// that it is, and the gradient back to the taps. A thread has VECTOR neighbouring channels, or one element.
//
// Constants: STORAGE (type of the images), COMPUTED (float, or double for double), WINNER (unsigned char, or long long
// where a window has more taps), INDEX (int, or long long where an array is too long for it), THREADS (of a block, at
// most), VECTOR (more than 1 only for channels-last images whose channels it divides, in whole and aligned vectors).
//
// Arguments in common. items: threads with work, elements of the result / VECTOR. channels: C. height, width: of the
// convolution. out_height, out_width: of the windows. last: images lie as (N, H, W, C), else as (N, C, H, W); winners
// as (N, H, W, C) always. kernel, stride, padding: of the windows, vertical and horizontal. Taps are counted by rows,
// those in the padding too. All arrays are the caller's and dense, unless they have strides; none is written that is
// read.
#include "runtime/cuda/place.cuh"
#include "runtime/cuda/types.cuh"

namespace {

typedef Vector<STORAGE, VECTOR> Numbers;
typedef Vector<WINNER, VECTOR> Winners;

__device__ __forceinline__ INDEX item_of_thread() { return (INDEX)blockIdx.x * blockDim.x + threadIdx.x; }

}  // namespace

// out = the largest number of y in each window; winners = its tap; kept = what `sums` has there. y, sums: (N, channels,
// height, width). out, kept: (N, channels, out_height, out_width). winners (out's extents), sums and kept may be null.
// NaN wins, of several the last; of equal numbers the first.
extern "C" __global__ void __launch_bounds__(THREADS, 1) largest_of_windows(
    const STORAGE* __restrict__ y, const STORAGE* __restrict__ sums, STORAGE* __restrict__ out,
    WINNER* __restrict__ winners, STORAGE* __restrict__ kept, INDEX items, int channels, int height, int width,
    int out_height, int out_width, int last, int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h,
    int padding_w) {
  INDEX item = item_of_thread();
  if (item >= items) return;
  Place at(item, channels, out_height, out_width, last != 0);
  int top = at.row * stride_h - padding_h, left = at.column * stride_w - padding_w;
  COMPUTED best[VECTOR];
  int tap[VECTOR];
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane) {
    best[lane] = -(COMPUTED)__int_as_float(0x7f800000);
    // The first tap inside: no window lies in the padding alone.
    tap[lane] = (top < 0 ? -top : 0) * kernel_w + (left < 0 ? -left : 0);
  }
  int end_r = height - top < kernel_h ? height - top : kernel_h;
  int end_s = width - left < kernel_w ? width - left : kernel_w;
#pragma unroll 1
  for (int r = top < 0 ? -top : 0; r < end_r; ++r)
#pragma unroll 4
    for (int s = left < 0 ? -left : 0; s < end_s; ++s) {
      Place from = at;
      from.row = top + r;
      from.column = left + s;
      Numbers read = *(const Numbers*)(y + from.in(channels, height, width, last != 0));
#pragma unroll
      for (int lane = 0; lane < VECTOR; ++lane) {
        COMPUTED value = widen(read.v[lane]);
        if (value > best[lane] || value != value) {
          best[lane] = value;
          tap[lane] = r * kernel_w + s;
        }
      }
    }
  INDEX to = at.in(channels, out_height, out_width, last != 0);
  store_vector(out + to, best);
  if (winners) {
    Winners found;
#pragma unroll
    for (int lane = 0; lane < VECTOR; ++lane) found.v[lane] = (WINNER)tap[lane];
    *(Winners*)(winners + at.in(channels, out_height, out_width, true)) = found;
  }
  if (kept) {
    Numbers found;
#pragma unroll
    for (int lane = 0; lane < VECTOR; ++lane) {
      Place from = at;
      from.channel += lane;
      from.row = top + tap[lane] / kernel_w;
      from.column = left + tap[lane] % kernel_w;
      found.v[lane] = sums[from.in(channels, height, width, last != 0)];
    }
    *(Numbers*)(kept + to) = found;
  }
}

// out[place] = the sum of grad over the windows whose winner that place is, in their order. grad: (N, channels,
// out_height, out_width) with strides g_image to g_column; winners: of these extents. out: (N, channels, height,
// width).
extern "C" __global__ void __launch_bounds__(THREADS, 1) spread_to_winners(
    const STORAGE* __restrict__ grad, const WINNER* __restrict__ winners, STORAGE* __restrict__ out, INDEX items,
    int channels, int height, int width, int out_height, int out_width, int last, INDEX g_image, INDEX g_channel,
    INDEX g_row, INDEX g_column, int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h,
    int padding_w) {
  INDEX item = item_of_thread();
  if (item >= items) return;
  Place at(item, channels, height, width, last != 0);
  int down = at.row + padding_h, right = at.column + padding_w;
  int first_row = down < kernel_h ? 0 : (down - kernel_h) / stride_h + 1;
  int first_column = right < kernel_w ? 0 : (right - kernel_w) / stride_w + 1;
  int end_row = down / stride_h + 1 < out_height ? down / stride_h + 1 : out_height;
  int end_column = right / stride_w + 1 < out_width ? right / stride_w + 1 : out_width;
  COMPUTED total[VECTOR] = {};
#pragma unroll 1
  for (int row = first_row; row < end_row; ++row)
#pragma unroll 2
    for (int column = first_column; column < end_column; ++column) {
      Place window = at;
      window.row = row;
      window.column = column;
      int tap = (down - row * stride_h) * kernel_w + right - column * stride_w;
      Winners winner = *(const Winners*)(winners + window.in(channels, out_height, out_width, true));
      Numbers read =
          *(const Numbers*)(grad + at.image * g_image + at.channel * g_channel + row * g_row + column * g_column);
#pragma unroll
      for (int lane = 0; lane < VECTOR; ++lane)
        if (winner.v[lane] == tap) total[lane] += widen(read.v[lane]);
    }
  store_vector(out + at.in(channels, height, width, last != 0), total);
}
