// The memory behind a rank's activations: allocated once, freed with the object.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/tensor.h"

namespace ptrt {

class TensorMemory {
 public:
  explicit TensorMemory(Backend& backend) : backend_(backend) {}

  // Zeroed. Throws, with `what` in the message, when there is not enough memory.
  Tensor make(std::int64_t tracks, std::int64_t rows, std::int64_t width, DType dtype, const char* what) {
    const std::size_t bytes = static_cast<std::size_t>(tracks * rows * width) * size_of(dtype);
    memory_.push_back(backend_.allocate(bytes, what));
    bytes_ += static_cast<std::int64_t>(bytes);
    return {memory_.back().get(), tracks, rows, width, rows * width, dtype};
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  Backend& backend_;
  std::vector<std::shared_ptr<std::byte[]>> memory_;
  std::int64_t bytes_ = 0;
};

}  // namespace ptrt
