// The begin and the end of a track block, as one op each: around a sync every pass over the streams
// costs.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor.h"

namespace ptrt {

// The end of a block: h += a; then h = RMSNorm(h; post_norm); then y = RMSNorm(h; combine_norm) -
// minus, each norm where it is given. Where y is other memory than h, h is undefined afterwards.
struct BlockEnd {
  Tensor a;                                 // [tracks, rows, d] output of the last sublayer
  Tensor h;                                 // [tracks, rows, d] float32, the tracks' streams
  Tensor y;                                 // [tracks, rows, d] float32; may be h
  Tensor minus;                             // [1, rows, d]      float32; no data: nothing is subtracted
  const TrackWeights* post_norm = nullptr;  // null: there is none, here and below
  const TrackWeights* combine_norm = nullptr;
  float eps = 0;
  bool pre_scale_post = false, pre_scale_combine = false;  // NormRule::pre_scale of these norms
};

// The beginning of a block: with `parts`, first x = scale · tree(parts) (+ x, where add_to_x); then
// for every track h = RMSNorm(x; dispatch_norm) or x, and normed = RMSNorm(h; pre_norm) where that
// is given.
struct BlockBegin {
  std::span<const float* const> parts = {};  // each [rows, d], none of them h; empty: x is there already
  float scale = 1;
  bool add_to_x = false;
  Tensor x;       // [1, rows, d]      float32
  Tensor h;       // [tracks, rows, d] float32
  Tensor normed;  // [tracks, rows, d]
  const TrackWeights* dispatch_norm = nullptr;
  const TrackWeights* pre_norm = nullptr;
  float eps = 0;
  bool pre_scale_dispatch = false, pre_scale_pre = false;  // NormRule::pre_scale of these norms
};

}  // namespace ptrt
