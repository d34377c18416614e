// Loads weights into device memory. Matrices are converted to the activation dtype, row-major;
// routers and vectors to float32; tables that are only looked up keep their dtype.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/weight_source.h"

namespace ptrt::cuda {

class WeightLoader {
 public:
  // `activation_dtype`: bfloat16 or float16.
  WeightLoader(const Stream& stream, DType activation_dtype)
      : stream_(stream), activation_dtype_(activation_dtype) {}

  // Allocates one block for all of them, in their order, so that a matrix of consecutive tracks has
  // a uniform stride. Throws if the device has not enough memory.
  void plan(std::span<const WeightSpec> specs);
  // Throws bad_input on int8 weights.
  Weight load(const WeightSpec& spec, WeightSource& source);
  std::size_t bytes() const { return bytes_; }  // of weights loaded so far

 private:
  std::byte* allocate(std::size_t bytes, const std::string& what);

  const Stream& stream_;
  DType activation_dtype_;
  std::vector<DevicePointer<std::byte>> memory_;
  std::byte* next_ = nullptr;
  std::size_t left_ = 0, bytes_ = 0;
  std::vector<std::byte> stored_, kept_;  // staging buffers
};

}  // namespace ptrt::cuda
