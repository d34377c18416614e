// Parts of int8 and float8 matrices as rows of the activation type.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/tensor.h"

namespace ptrt::cuda {

// Rows of the matrices of some tracks, all of one 8-bit type and size.
struct WeightRows {
  const TrackWeights* weights = nullptr;
  std::int64_t first_track = 0, tracks = 0;  // up to kTracksPerLaunch of them
  std::int64_t first_row = 0, rows = 0;
};

// to [tracks, rows, in] of `type`: code · scale in float32, rounded once. `in` is a multiple of 8.
void widen_rows(const WeightRows& from, DType type, void* to, cudaStream_t stream);

}  // namespace ptrt::cuda
