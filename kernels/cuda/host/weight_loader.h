// Loads weights into device memory. Matrices are converted to the activation dtype, row-major, except those of 8
// bits, which stay as they are (host/weight_layout.h); routers and vectors become float32; tables that are only
// looked up keep their dtype.
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
  // Throws bad_input on 8-bit weights that are not matrices.
  Weight load(const WeightSpec& spec, WeightSource& source);
  std::size_t bytes() const { return bytes_; }  // of weights loaded so far

 private:
  std::byte* allocate(std::int64_t bytes, const std::string& what);
  void upload(std::span<const std::byte> from, std::byte* to);
  // Of the staged rows, as device memory has them; valid until the next call.
  std::span<const std::byte> kept_rows(const WeightSpec& spec, DType kept);
  std::span<const std::byte> int8_scales(std::int64_t in, std::int64_t first, std::int64_t count,
                                         WeightSource& source);
  std::span<const std::byte> float8_scales(std::int64_t in, std::int64_t first, std::int64_t count,
                                           WeightSource& source);

  const Stream& stream_;
  DType activation_dtype_;
  std::vector<DevicePointer<std::byte>> memory_;
  std::byte* next_ = nullptr;
  std::int64_t left_ = 0;
  std::size_t bytes_ = 0;
  std::vector<std::byte> stored_, kept_, scales_;  // staging buffers
};

}  // namespace ptrt::cuda
