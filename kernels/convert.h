// Converts rows of weights from one element type to another, for memory or for a file.
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

// Quantises whole rows of a weight of a floating type to int8. Keeps its scratch between calls.
class Int8Rows {
 public:
  // Quantises `rows`, stored as `spec` says; the first one is row `first` of the weight. Throws
  // bad_input, naming the weight and the element, when int8 cannot hold a value.
  void quantize(const WeightSpec& spec, std::int64_t first, std::span<const std::byte> rows);

  std::span<const std::int8_t> q() const { return q_; }              // [rows][in]
  std::span<const std::uint16_t> scales() const { return scales_; }  // [rows][groups], float16

 private:
  std::vector<float> wide_;
  std::vector<std::int8_t> q_;
  std::vector<std::uint16_t> scales_;
};

// The same for float8, with one scale a row (float8.h).
class Float8Rows {
 public:
  void quantize(const WeightSpec& spec, std::int64_t first, std::span<const std::byte> rows);

  std::span<const std::uint8_t> codes() const { return codes_; }  // [rows][in]
  std::span<const float> scales() const { return scales_; }       // [rows]

 private:
  std::vector<float> wide_;
  std::vector<std::uint8_t> codes_;
  std::vector<float> scales_;
};

}  // namespace ptrt
