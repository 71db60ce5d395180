// Where numbers lie in shared memory that are written in one order and read in the other: lines of `length` neighbours. A
// warp finds different banks along a line, from line to line, and across the lines; of other even lengths than powers of
// two some twice.
#pragma once

// Numbers that a line has room for.
__device__ __forceinline__ int turned_pitch(int length) { return length & (length - 1) ? length | 1 : length; }

__device__ __forceinline__ int turned_place(int line, int place, int length) {
  int first = line * turned_pitch(length);
  return first + (length & (length - 1) ? place : place ^ (first / 32 & (length - 1)));
}
