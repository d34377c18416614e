// Pieces of a memory of random numbers, as weights and tensors of the GPU benchmark.
#pragma once

#include <cstddef>

#include "kernels/base/error.h"
#include "kernels/cuda/host/weight_layout.h"
#include "kernels/tensor.h"

namespace ptrt {

// Bytes that a matrix of this type takes of a device, with its scales.
inline std::int64_t matrix_bytes(DType type, std::int64_t out, std::int64_t in) {
  return cuda::device_weight_bytes(type, 1, out, in).taken();
}

// Assigns consecutive pieces of the memory.
class Pieces {
 public:
  Pieces(std::byte* memory, std::size_t bytes) : next_(memory), left_(static_cast<std::int64_t>(bytes)) {}

  std::byte* take(std::int64_t bytes) {
    bytes = cuda::DeviceWeightBytes::aligned(bytes);
    PTRT_CHECK(bytes <= left_);
    std::byte* piece = next_;
    next_ += bytes;
    left_ -= bytes;
    return piece;
  }
  // Of 8 bits, codes and scales are random numbers read as another type: speed does not depend on them.
  TrackWeights matrices(DType type, std::int64_t tracks, std::int64_t out, std::int64_t in) {
    TrackWeights weights;
    for (std::int64_t t = 0; t < tracks; ++t) {
      std::byte* at = take(matrix_bytes(type, out, in));
      weights.push_back({at, type, 1, out, in});
      if (cuda::is_8bit(type))
        weights.back().scales = at + cuda::device_weight_bytes(type, 1, out, in).scales_at();
    }
    return weights;
  }
  Tensor tensor(std::int64_t tracks, std::int64_t rows, std::int64_t width, DType type) {
    return {take(tracks * rows * width * static_cast<std::int64_t>(size_of(type))),
            tracks,
            rows,
            width,
            rows * width,
            type};
  }

 private:
  std::byte* next_;
  std::int64_t left_;
};

}  // namespace ptrt
