// Rows of weights from one element type to another, on their way into memory or into a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/weight_source.h"

namespace ptrt {

// n elements of a floating type, widened to float32.
void widen(DType type, const std::byte* from, std::int64_t n, float* to);
// n elements rounded to bfloat16 (to nearest, ties to even).
void round_to_bfloat16(const float* from, std::int64_t n, std::uint16_t* to);

// Whole rows of a weight of a floating type as int8. Keeps the scratch.
class Int8Rows {
 public:
  // Quantises `rows`, as spec says they are stored, the first of them number `first` of all its rows. Throws
  // bad_input that names the weight and the element that int8 cannot hold.
  void quantize(const WeightSpec& spec, std::int64_t first, std::span<const std::byte> rows);

  std::span<const std::int8_t> q() const { return q_; }              // [rows][in]
  std::span<const std::uint16_t> scales() const { return scales_; }  // [rows][groups], float16

 private:
  std::vector<float> wide_;
  std::vector<std::int8_t> q_;
  std::vector<std::uint16_t> scales_;
};

}  // namespace ptrt
