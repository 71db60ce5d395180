// The poolings and their gradients. A thread has VECTOR neighbours in memory of the result.
//
// Constants: STORAGE (type of the images), COMPUTED (float, or double for double), INDEX (int, or long long where an
// array is too long for it), THREADS (of a block, at most), VECTOR (more than 1 only for channels-last images whose
// channels it divides, and which lie side by side).
//
// Arguments in common. items: threads with work, elements of the result / VECTOR. channels: C. height, width: of the
// image. out_height, out_width: of the windows. last: the result lies as (N, H, W, C), else as (N, C, H, W). X_image,
// X_channel, X_row, X_column: strides of array X in elements. kernel, stride, padding, dilation: vertical (_h) and
// horizontal (_w). adaptive: windows from floor(o * size / outputs) to ceil((o + 1) * size / outputs) in place of
// these.
//
// In backward each place of the image collects from the windows that cover it, in their order: no atomics. No array is
// written that is read, and all are the caller's.
#include "runtime/cuda/place.cuh"
#include "runtime/cuda/types.cuh"

namespace {

typedef Vector<STORAGE, VECTOR> Numbers;

// The windows along one dimension of the image.
struct Side {
  int size, outputs, kernel, stride, padding, dilation;
  bool adaptive;

  // The first tap inside of window o, or one at or behind the end where there is none.
  __device__ int first(int o) const {
    if (adaptive) return (int)((long long)o * size / outputs);
    int tap = o * stride - padding;
    return tap >= 0 ? tap : tap + (dilation - 1 - tap) / dilation * dilation;
  }

  // Behind the last tap inside of window o.
  __device__ int end(int o) const {
    if (adaptive) return (int)(((long long)(o + 1) * size + outputs - 1) / outputs);
    int behind = o * stride - padding + dilation * (kernel - 1) + 1;
    return behind < size ? behind : size;
  }

  // The first window that may cover a place of the image.
  __device__ int first_cover(int place) const {
    if (adaptive) return (int)((long long)place * outputs / size);
    int beyond = place + padding - dilation * (kernel - 1);
    return beyond > 0 ? (beyond + stride - 1) / stride : 0;
  }

  // Behind the last window that may cover a place.
  __device__ int end_cover(int place) const {
    if (adaptive) return (int)(((long long)(place + 1) * outputs + size - 1) / size);
    int behind = (place + padding) / stride + 1;
    return behind < outputs ? behind : outputs;
  }

  // What window o counts for in the divisor: its taps inside, and those in the padding where `padded`.
  __device__ int extent(int o, bool padded) const {
    if (adaptive) return end(o) - first(o);
    int start = o * stride - padding, behind = start + kernel;
    if (padded) return (behind < size + padding ? behind : size + padding) - start;
    return (behind < size ? behind : size) - (start > 0 ? start : 0);
  }
};

__device__ __forceinline__ INDEX item_of_thread() { return (INDEX)blockIdx.x * blockDim.x + threadIdx.x; }

__device__ __forceinline__ COMPUTED size_of(COMPUTED x) { return x < 0 ? -x : x; }

// x ** p: by squaring for whole numbers up to 16, else in float64 (NaN for a negative x and a p with a fraction).
__device__ COMPUTED power(COMPUTED x, double p) {
  double size = p < 0 ? -p : p;
  int whole = size <= 16 ? (int)size : -1;
  COMPUTED found;
  if (whole == size) {
    found = 1;
    COMPUTED square = x;
    for (int rest = whole; rest; rest >>= 1) {
      if (rest & 1) found *= square;
      square *= square;
    }
  } else if (size == 0.5) {
    found = sqrt(x);
  } else {
    found = (COMPUTED)pow((double)x, size);
  }
  return p < 0 ? 1 / found : found;
}

}  // namespace

// out = the largest value of each window, and in indices (int64, as out, or null) where it was, flat in its plane.
// x: (N, C, height, width). out: (N, C, out_height, out_width), dense.
// NaN wins, of several the last; of equal values the first. A window without a tap in the image is -inf, and its place
// is the nearest one. magnitude: 1 for the largest |x|, -1 for the smallest, 0 for x itself.
extern "C" __global__ void __launch_bounds__(THREADS, 1) max_of_windows(
    const STORAGE* __restrict__ x, STORAGE* __restrict__ out, long long* __restrict__ indices, INDEX items,
    int channels, int height, int width, int out_height, int out_width, int last, INDEX x_image, INDEX x_channel,
    INDEX x_row, INDEX x_column, int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w,
    int dilation_h, int dilation_w, int adaptive, int magnitude) {
  INDEX item = item_of_thread();
  if (item >= items) return;
  Side down = {height, out_height, kernel_h, stride_h, padding_h, dilation_h, adaptive != 0};
  Side along = {width, out_width, kernel_w, stride_w, padding_w, dilation_w, adaptive != 0};
  Place at(item, channels, out_height, out_width, last != 0);
  int top = down.first(at.row), bottom = down.end(at.row), left = along.first(at.column), right = along.end(at.column);
  const STORAGE* source = x + at.image * x_image + at.channel * x_channel;
  INDEX nearest = (INDEX)(top < height ? top : height - 1) * width + (left < width ? left : width - 1);
  COMPUTED best[VECTOR];
  INDEX where[VECTOR];
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane) {
    best[lane] = -(COMPUTED)__int_as_float(0x7f800000);
    where[lane] = nearest;
  }
#pragma unroll 1
  for (int h = top; h < bottom; h += dilation_h)
#pragma unroll 4
    for (int w = left; w < right; w += dilation_w) {
      Numbers read = *(const Numbers*)(source + h * x_row + w * x_column);
#pragma unroll
      for (int lane = 0; lane < VECTOR; ++lane) {
        COMPUTED value = widen(read.v[lane]);
        if (magnitude) value = size_of(value) * magnitude;
        if (value > best[lane] || value != value) {
          best[lane] = value;
          where[lane] = (INDEX)h * width + w;
        }
      }
    }
  Numbers found;
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane)
    found.v[lane] = narrow<STORAGE>(magnitude < 0 ? -best[lane] : best[lane]);
  *(Numbers*)(out + item * VECTOR) = found;
  if (indices) {
    // 128 bits at a time: two indices.
    constexpr int PAIR = VECTOR < 2 ? 1 : 2;
#pragma unroll
    for (int lane = 0; lane < VECTOR; lane += PAIR) {
      Vector<long long, PAIR> places;
#pragma unroll
      for (int k = 0; k < PAIR; ++k) places.v[k] = where[lane + k];
      *(Vector<long long, PAIR>*)(indices + item * VECTOR + lane) = places;
    }
  }
}

// out[place] = the sum of grad over the windows whose index is that place; times the sign of x where that is not null.
// grad, indices (int64): (N, C, out_height, out_width). x: (N, C, height, width) or null. out: the same, dense.
extern "C" __global__ void __launch_bounds__(THREADS, 1) gradient_of_maxima(
    const STORAGE* __restrict__ grad, const long long* __restrict__ indices, const STORAGE* __restrict__ x,
    STORAGE* __restrict__ out, INDEX items, int channels, int height, int width, int out_height, int out_width,
    int last, INDEX g_image, INDEX g_channel, INDEX g_row, INDEX g_column, INDEX i_image, INDEX i_channel, INDEX i_row,
    INDEX i_column, INDEX x_image, INDEX x_channel, INDEX x_row, INDEX x_column, int kernel_h, int kernel_w,
    int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w, int adaptive) {
  INDEX item = item_of_thread();
  if (item >= items) return;
  Side down = {height, out_height, kernel_h, stride_h, padding_h, dilation_h, adaptive != 0};
  Side along = {width, out_width, kernel_w, stride_w, padding_w, dilation_w, adaptive != 0};
  Place at(item, channels, height, width, last != 0);
  const STORAGE* g = grad + at.image * g_image + at.channel * g_channel;
  const long long* winner = indices + at.image * i_image + at.channel * i_channel;
  long long own = (long long)at.row * width + at.column;
  int bottom = down.end_cover(at.row), left = along.first_cover(at.column), right = along.end_cover(at.column);
  COMPUTED total[VECTOR] = {};
#pragma unroll 1
  for (int row = down.first_cover(at.row); row < bottom; ++row)
#pragma unroll 4
    for (int column = left; column < right; ++column) {
      Numbers read = *(const Numbers*)(g + row * g_row + column * g_column);
      Vector<long long, VECTOR < 2 ? 1 : 2> places;
#pragma unroll
      for (int lane = 0; lane < VECTOR; ++lane) {
        if (lane % 2 == 0)
          places = *(const Vector<long long, VECTOR < 2 ? 1 : 2>*)(winner + row * i_row + column * i_column + lane);
        if (places.v[lane % 2] == own) total[lane] += widen(read.v[lane]);
      }
    }
  if (x) {
    Numbers read = *(const Numbers*)(x + at.image * x_image + at.channel * x_channel + at.row * x_row +
                                     at.column * x_column);
#pragma unroll
    for (int lane = 0; lane < VECTOR; ++lane) {
      COMPUTED value = widen(read.v[lane]);
      total[lane] *= value > 0 ? 1 : value < 0 ? -1 : 0;
    }
  }
  Numbers found;
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane) found.v[lane] = narrow<STORAGE>(total[lane]);
  *(Numbers*)(out + item * VECTOR) = found;
}

namespace {

template <bool POWERS>
__device__ __forceinline__ void mean_of_item(
    const STORAGE* __restrict__ x, STORAGE* __restrict__ out, INDEX item, Side down, Side along, int channels, int last,
    INDEX x_image, INDEX x_channel, INDEX x_row, INDEX x_column, int padded, COMPUTED divisor, double exponent) {
  Place at(item, channels, down.outputs, along.outputs, last != 0);
  int bottom = down.end(at.row), left = along.first(at.column), right = along.end(at.column);
  const STORAGE* source = x + at.image * x_image + at.channel * x_channel;
  COMPUTED total[VECTOR] = {};
#pragma unroll 1
  for (int h = down.first(at.row); h < bottom; ++h)
#pragma unroll 4
    for (int w = left; w < right; ++w) {
      Numbers read = *(const Numbers*)(source + h * x_row + w * x_column);
#pragma unroll
      for (int lane = 0; lane < VECTOR; ++lane) {
        COMPUTED value = widen(read.v[lane]);
        total[lane] += POWERS ? power(value, exponent) : value;
      }
    }
  if (divisor == 0)
    divisor = (COMPUTED)((long long)down.extent(at.row, padded != 0) * along.extent(at.column, padded != 0));
  Numbers found;
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane) {
    COMPUTED mean = total[lane] / divisor;
    // + 0 makes -0 a plain 0, as the reference has it.
    if (POWERS) mean = power((mean + (COMPUTED)0) * ((COMPUTED)down.kernel * along.kernel), 1 / exponent);
    found.v[lane] = narrow<STORAGE>(mean);
  }
  *(Numbers*)(out + item * VECTOR) = found;
}

template <bool POWERS>
__device__ __forceinline__ void gradient_of_item(
    const STORAGE* __restrict__ grad, const STORAGE* __restrict__ x, const STORAGE* __restrict__ y,
    STORAGE* __restrict__ out, INDEX item, Side down, Side along, int channels, int last, INDEX g_image,
    INDEX g_channel, INDEX g_row, INDEX g_column, INDEX x_image, INDEX x_channel, INDEX x_row, INDEX x_column,
    INDEX y_image, INDEX y_channel, INDEX y_row, INDEX y_column, int padded, COMPUTED divisor, double exponent) {
  Place at(item, channels, down.size, along.size, last != 0);
  int bottom = down.end_cover(at.row), left = along.first_cover(at.column), right = along.end_cover(at.column);
  const STORAGE* g = grad + at.image * g_image + at.channel * g_channel;
  COMPUTED total[VECTOR] = {};
#pragma unroll 1
  for (int row = down.first_cover(at.row); row < bottom; ++row)
#pragma unroll 4
    for (int column = left; column < right; ++column) {
      COMPUTED count = divisor;
      if (divisor == 0)
        count = (COMPUTED)((long long)down.extent(row, padded != 0) * along.extent(column, padded != 0));
      Numbers read = *(const Numbers*)(g + row * g_row + column * g_column);
      Numbers known;
      if (POWERS)
        known = *(const Numbers*)(y + at.image * y_image + at.channel * y_channel + row * y_row + column * y_column);
#pragma unroll
      for (int lane = 0; lane < VECTOR; ++lane) {
        COMPUTED share = widen(read.v[lane]);
        if (POWERS) {
          COMPUTED output = widen(known.v[lane]);
          // Powers that add up to 0 pass nothing on; for p = 1 nor does NaN.
          bool nothing = exponent > 0 ? output == 0 : output == (COMPUTED)__int_as_float(0x7f800000);
          if (exponent == 1) nothing = nothing || output != output;
          share = nothing ? 0 : share * power(output, 1 - exponent) * ((COMPUTED)down.kernel * along.kernel);
        }
        total[lane] += share / count;
      }
    }
  Numbers found, own;
  if (POWERS)
    own = *(const Numbers*)(x + at.image * x_image + at.channel * x_channel + at.row * x_row + at.column * x_column);
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane) {
    if (POWERS) total[lane] *= power(widen(own.v[lane]), exponent - 1);
    found.v[lane] = narrow<STORAGE>(total[lane]);
  }
  *(Numbers*)(out + item * VECTOR) = found;
}

}  // namespace

// out = the sum of each window over its divisor: `divisor`, or where that is 0 the window's taps inside the image, and
// those in the padding too where `padded`. x: (N, C, height, width). out: (N, C, out_height, out_width), dense.
extern "C" __global__ void __launch_bounds__(THREADS, 1) mean_of_windows(
    const STORAGE* __restrict__ x, STORAGE* __restrict__ out, INDEX items, int channels, int height, int width,
    int out_height, int out_width, int last, INDEX x_image, INDEX x_channel, INDEX x_row, INDEX x_column, int kernel_h,
    int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w, int adaptive, int padded,
    COMPUTED divisor) {
  INDEX item = item_of_thread();
  if (item >= items) return;
  Side down = {height, out_height, kernel_h, stride_h, padding_h, 1, adaptive != 0};
  Side along = {width, out_width, kernel_w, stride_w, padding_w, 1, adaptive != 0};
  mean_of_item<false>(x, out, item, down, along, channels, last, x_image, x_channel, x_row, x_column, padded, divisor,
                      1);
}

// out = (K * mean of x ** exponent) ** (1 / exponent), K the size of the full window. Arrays as in mean_of_windows.
extern "C" __global__ void __launch_bounds__(THREADS, 1) power_mean_of_windows(
    const STORAGE* __restrict__ x, STORAGE* __restrict__ out, INDEX items, int channels, int height, int width,
    int out_height, int out_width, int last, INDEX x_image, INDEX x_channel, INDEX x_row, INDEX x_column, int kernel_h,
    int kernel_w, int stride_h, int stride_w, double exponent) {
  INDEX item = item_of_thread();
  if (item >= items) return;
  Side down = {height, out_height, kernel_h, stride_h, 0, 1, false};
  Side along = {width, out_width, kernel_w, stride_w, 0, 1, false};
  mean_of_item<true>(x, out, item, down, along, channels, last, x_image, x_channel, x_row, x_column, 1, 0, exponent);
}

// out[place] = the sum of grad / divisor over the windows that cover it. grad: (N, C, out_height, out_width). out:
// (N, C, height, width), dense. The divisor as in mean_of_windows.
extern "C" __global__ void __launch_bounds__(THREADS, 1) gradient_of_means(
    const STORAGE* __restrict__ grad, STORAGE* __restrict__ out, INDEX items, int channels, int height, int width,
    int out_height, int out_width, int last, INDEX g_image, INDEX g_channel, INDEX g_row, INDEX g_column, int kernel_h,
    int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w, int adaptive, int padded,
    COMPUTED divisor) {
  INDEX item = item_of_thread();
  if (item >= items) return;
  Side down = {height, out_height, kernel_h, stride_h, padding_h, 1, adaptive != 0};
  Side along = {width, out_width, kernel_w, stride_w, padding_w, 1, adaptive != 0};
  gradient_of_item<false>(grad, nullptr, nullptr, out, item, down, along, channels, last, g_image, g_channel, g_row,
                          g_column, 0, 0, 0, 0, 0, 0, 0, 0, padded, divisor, 1);
}

// The gradient of power_mean_of_windows from grad and its output y (N, C, out_height, out_width) and its x (N, C,
// height, width); out as x, dense. A window whose powers add up to 0 passes nothing on.
extern "C" __global__ void __launch_bounds__(THREADS, 1) gradient_of_power_means(
    const STORAGE* __restrict__ grad, const STORAGE* __restrict__ x, const STORAGE* __restrict__ y,
    STORAGE* __restrict__ out, INDEX items, int channels, int height, int width, int out_height, int out_width,
    int last, INDEX g_image, INDEX g_channel, INDEX g_row, INDEX g_column, INDEX x_image, INDEX x_channel, INDEX x_row,
    INDEX x_column, INDEX y_image, INDEX y_channel, INDEX y_row, INDEX y_column, int kernel_h, int kernel_w,
    int stride_h, int stride_w, double exponent) {
  INDEX item = item_of_thread();
  if (item >= items) return;
  Side down = {height, out_height, kernel_h, stride_h, 0, 1, false};
  Side along = {width, out_width, kernel_w, stride_w, 0, 1, false};
  gradient_of_item<true>(grad, x, y, out, item, down, along, channels, last, g_image, g_channel, g_row, g_column,
                         x_image, x_channel, x_row, x_column, y_image, y_channel, y_row, y_column, 1, 0, exponent);
}
