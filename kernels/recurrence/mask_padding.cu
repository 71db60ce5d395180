// x with its padding taken out, for the gradient of w_ih.
//
// Constants: STORAGE, INDEX, LENGTH (types), VECTOR (numbers that a thread copies).
#include "runtime/cuda/types.cuh"

// x contiguous in its own order, 0 past the rows' lengths, whatever stands there: grad w_ih multiplies all of it.
//
// grid: enough blocks for steps batch features / VECTOR threads; block: 256. A thread copies VECTOR neighbours.
// All arrays are the caller's.
extern "C" __global__ void __launch_bounds__(256) mask_padding(
    const STORAGE* __restrict__ x,  // strides x_time, x_row, x_one (1 where VECTOR is more than 1)
    const LENGTH* __restrict__ lengths,  // [batch]
    STORAGE* __restrict__ to,  // written: [steps][batch][features], or [batch][steps][features] with batch_first
    int steps, int batch, int features, bool batch_first, INDEX x_time, INDEX x_row, INDEX x_one) {
  const INDEX i = ((INDEX)blockIdx.x * 256 + threadIdx.x) * VECTOR, place = i / features;
  const int one = (int)(i % features), inner = batch_first ? steps : batch;
  if (place >= (INDEX)steps * batch) return;
  const int slow = (int)(place / inner), fast = (int)(place % inner);
  const int t = batch_first ? fast : slow, row = batch_first ? slow : fast;
  Vector<STORAGE, VECTOR> values;
#pragma unroll
  for (int e = 0; e < VECTOR; ++e) values.v[e] = STORAGE(0.0f);
  if (t < lengths[row])
    values = *reinterpret_cast<const Vector<STORAGE, VECTOR>*>(x + t * x_time + row * x_row + one * x_one);
  *reinterpret_cast<Vector<STORAGE, VECTOR>*>(to + i) = values;
}
