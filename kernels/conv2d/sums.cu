// What the products of convolutions need around them: sums over pixels, and the sums of parts.
//
// Constants: STORAGE (type of the images and of the weight), COMPUTED (float, or double for double), INDEX (int, or
// long long where an array is too long for it), THREADS (of a block, at most), VECTOR (of a thread), DEPTH (taps whose
// sums a thread of add_turned_parts keeps). All arrays are the caller's; none is written that is read.
#include "activation/activation.cuh"
#include "conv2d/turned.cuh"
#include "runtime/cuda/types.cuh"

namespace {

typedef Vector<STORAGE, VECTOR> Numbers;

// VECTOR sums in memory, in accesses of 16 bytes: `Group`s, of which a thread has one, or two of halves.
constexpr int GROUP = VECTOR * (int)sizeof(COMPUTED) > 16 ? 16 / (int)sizeof(COMPUTED) : VECTOR;
constexpr bool PAIRED = VECTOR > GROUP;
static_assert(VECTOR == GROUP || VECTOR == 2 * GROUP, "one group or two");
typedef Vector<COMPUTED, GROUP> Group;

// Where group g of a thread is, of item `item`. A thread that has two reads, with its neighbour, first the two of the one
// and then the two of the other: else each would ask for half sectors. `exchange` gives each its own, and takes it back.
__device__ __forceinline__ INDEX place_of_group(INDEX item, int g) {
  return PAIRED ? ((item & ~(INDEX)1) + g) * VECTOR + (item & 1) * GROUP : item * VECTOR;
}
__device__ __forceinline__ bool has_group(INDEX item, int g, INDEX items) {
  return (PAIRED ? (item & ~(INDEX)1) + g : item) < items;
}

// Every thread of the warp calls it, and neighbours have neighbouring items, the first of them an even one.
__device__ __forceinline__ void exchange(COMPUTED (&sums)[VECTOR]) {
  if constexpr (PAIRED) {
    bool odd = threadIdx.x & 1;
#pragma unroll
    for (int lane = 0; lane < GROUP; ++lane) {
      COMPUTED other = __shfl_xor_sync(0xffffffffu, odd ? sums[lane] : sums[GROUP + lane], 1);
      sums[lane] = odd ? other : sums[lane];
      sums[GROUP + lane] = odd ? sums[GROUP + lane] : other;
    }
  }
}

// total += the item's groups of a part.
__device__ __forceinline__ void add_groups(const COMPUTED* part, INDEX item, INDEX items, COMPUTED (&total)[VECTOR]) {
#pragma unroll
  for (int g = 0; g < VECTOR / GROUP; ++g) {
    if (!has_group(item, g, items)) continue;
    Group found = *(const Group*)(part + place_of_group(item, g));
#pragma unroll
    for (int lane = 0; lane < GROUP; ++lane) total[g * GROUP + lane] += found.v[lane];
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
  // A block with a single thread across has the only group of channels.
  bool paired = PAIRED && blockDim.x > 1;
  if (paired) exchange(total);
  if (threadIdx.y) return;
  COMPUTED* to = parts + ((INDEX)blockIdx.y * taps + tap) * channels;
  INDEX item = channel / VECTOR, items = channels / VECTOR;
#pragma unroll
  for (int g = 0; g < VECTOR / GROUP; ++g) {
    if (!(paired ? has_group(item, g, items) : item < items)) continue;
    Group made;
#pragma unroll
    for (int lane = 0; lane < GROUP; ++lane) made.v[lane] = total[g * GROUP + lane];
    *(Group*)(to + (paired ? place_of_group(item, g) : channel + g * GROUP)) = made;
  }
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
#pragma unroll 4
  for (int part = threadIdx.y; part < count; part += blockDim.y)
    add_groups(parts + part * items * VECTOR, item, items, total);
  exchange(total);
  add_over_y(total, sums);
  if (threadIdx.y || item >= items) return;
  INDEX i = item * VECTOR % inner, rest = item * VECTOR / inner;
  store_vector(out + rest / taps * o_outer + rest % taps * o_tap + i * o_inner, total);
}

// The same of parts counted as (outer, taps, inner) where out has the taps of an inner place side by side: element
// (outer, inner, tap) with strides o_outer, o_inner and 1. A block has blockDim.x inner places of `depth` taps, at most
// DEPTH, and writes them in the order of memory. Blocks: groups of inner places, the fastest, times groups of taps,
// times outer. whole: elements of a part.
extern "C" __global__ void __launch_bounds__(THREADS, 1) add_turned_parts(
    const COMPUTED* __restrict__ parts, STORAGE* __restrict__ out, INDEX whole, int count, int taps, int inner,
    int depth, INDEX o_outer, INDEX o_inner) {
  // Of the half of the threads whose sums are added to the others', tap by tap; afterwards what is written.
  __shared__ COMPUTED sums[DEPTH * THREADS / 2];
  int across = (inner + blockDim.x - 1) / blockDim.x;
  int groups = (taps + depth - 1) / depth;
  int first = blockIdx.x % across * blockDim.x, first_tap = blockIdx.x / across % groups * depth;
  int rest = taps - first_tap < depth ? taps - first_tap : depth;
  INDEX outer = blockIdx.x / across / groups;
  COMPUTED total[DEPTH] = {};
  const COMPUTED* from = parts + (outer * taps + first_tap) * inner + first + threadIdx.x;
  if (first + threadIdx.x < inner) {
#pragma unroll 2
    for (int part = threadIdx.y; part < count; part += blockDim.y)
#pragma unroll
      for (int tap = 0; tap < DEPTH; ++tap)
        if (tap < rest) total[tap] += from[part * whole + (INDEX)tap * inner];
  }
  for (int half = blockDim.y / 2; half; half /= 2) {
    int lines = half * blockDim.x, mine = threadIdx.y % half * blockDim.x + threadIdx.x;
    __syncthreads();
    if (threadIdx.y >= half && threadIdx.y < 2 * half) {
#pragma unroll
      for (int tap = 0; tap < DEPTH; ++tap)
        if (tap < rest) sums[tap * lines + mine] = total[tap];
    }
    __syncthreads();
    if (threadIdx.y < half) {
#pragma unroll
      for (int tap = 0; tap < DEPTH; ++tap)
        if (tap < rest) total[tap] += sums[tap * lines + mine];
    }
  }
  __syncthreads();
  int thread = threadIdx.y * blockDim.x + threadIdx.x;
  if (threadIdx.y == 0) {
#pragma unroll
    for (int tap = 0; tap < DEPTH; ++tap)
      if (tap < rest) sums[turned_place(threadIdx.x, tap, rest)] = total[tap];
  }
  __syncthreads();
  for (int item = thread; item < rest * (int)blockDim.x; item += blockDim.x * blockDim.y) {
    int place = item / rest, tap = item % rest;
    if (first + place < inner)
      out[outer * o_outer + (first + place) * o_inner + first_tap + tap] = narrow<STORAGE>(sums[turned_place(place, tap, rest)]);
  }
}

// out = act(bias + the sum over the parts, in their order), and what is before the activation where sums is not null.
// parts: (count, elements of out), in the order in which they lie in out and sums. bias: (channels,) or null. plane:
// elements from a channel to the next one. A thread has VECTOR elements: more than 1 only where VECTOR divides their
// number, and with a bias plane, or plane is 1, VECTOR divides channels, and the bias is aligned. items: elements / VECTOR.
extern "C" __global__ void __launch_bounds__(THREADS, 1) finish_parts(
    const COMPUTED* __restrict__ parts, const STORAGE* __restrict__ bias, STORAGE* __restrict__ out,
    STORAGE* __restrict__ sums, INDEX items, int count, int channels, INDEX plane, int activation) {
  INDEX item = (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
  COMPUTED total[VECTOR] = {};
#pragma unroll 4
  for (int part = 0; part < count; ++part) add_groups(parts + part * items * VECTOR, item, items, total);
  exchange(total);
  if (item >= items) return;
  if (bias) {
    COMPUTED added[VECTOR];
    const STORAGE* from = bias + item * VECTOR / plane % channels;
    if (plane > 1) {
#pragma unroll
      for (int lane = 0; lane < VECTOR; ++lane) added[lane] = widen(*from);
    } else {
      load_vector(from, added);
    }
#pragma unroll
    for (int lane = 0; lane < VECTOR; ++lane) total[lane] += added[lane];
  }
  if (sums) store_vector(sums + item * VECTOR, total);
#pragma unroll
  for (int lane = 0; lane < VECTOR; ++lane) total[lane] = activate(total[lane], activation);
  store_vector(out + item * VECTOR, total);
}
