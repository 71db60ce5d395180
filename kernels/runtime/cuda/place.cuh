// Where a thread's elements lie in a batch of images, which kernels of images share.
//
// Constants: INDEX (int, or long long where an array is too long for it), VECTOR (neighbouring channels of a thread; more
// than 1 only for channels-last images whose channels it divides).
#pragma once

// The image, first channel, row and column of a thread's elements in a result of (N, channels, height, width).
struct Place {
  INDEX image, channel;
  int row, column;

  __device__ Place(INDEX item, int channels, int height, int width, bool last) {
    if (last) {
      int groups = channels / VECTOR;
      channel = item % groups * VECTOR;
      item /= groups;
    }
    column = (int)(item % width);
    item /= width;
    row = (int)(item % height);
    image = item / height;
    if (!last) {
      channel = image % channels;
      image /= channels;
    }
  }

  // In a dense array of the result's extents.
  __device__ INDEX in(int channels, int height, int width, bool last) const {
    if (last) return ((image * height + row) * width + column) * channels + channel;
    return ((image * channels + channel) * height + row) * width + column;
  }
};
