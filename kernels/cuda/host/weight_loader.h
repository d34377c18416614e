// Takes weights into device memory: matrices take the inner type, row-major; routers and vectors float32;
// tables that are only looked up keep their type.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/host/device_memory.h"

namespace ptrt::cuda {

class WeightLoader {
 public:
  // `inner`: bfloat16 or float16.
  WeightLoader(const Stream& stream, DType inner) : stream_(stream), inner_(inner) {}

  // Takes the memory of all of them in one piece, in their order, so that the same matrix of every track lies
  // at an even distance; throws when the device has less.
  void plan(std::span<const WeightSpec> specs);
  // Throws bad_input on int8 weights.
  Weight load(const WeightSpec& spec, WeightSource& source);
  std::size_t bytes() const { return bytes_; }  // of weights loaded so far

 private:
  std::byte* take(std::size_t bytes, const std::string& what);

  const Stream& stream_;
  DType inner_;
  std::vector<DevicePointer<std::byte>> memory_;
  std::byte* next_ = nullptr;
  std::size_t left_ = 0, bytes_ = 0;
  std::vector<std::byte> stored_, kept_;  // rows on their way
};

}  // namespace ptrt::cuda
