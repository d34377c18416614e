// How a GPU's memory holds weights: the type that each is kept in, and the layout of 8-bit matrices.
//
// Their codes are [count][out] rows of `in` bytes, each row filled up with zeros to a multiple of 16. float8
// has one float32 scale a row, [count][out]. int8 has one float16 scale for every 32 inputs, in blocks of 8
// rows and 128 inputs, what a warp takes at once: [count][out / 8][in / 128][8][4], rounded up, zeros beyond
// the ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "kernels/tensor.h"
#include "kernels/weight_source.h"

namespace ptrt::cuda {

// Elements of 8-bit matrices, as kernels name them.
enum class Int8 : std::uint8_t {};
enum class Float8 : std::uint8_t {};

constexpr bool is_8bit(DType type) {
  return type == DType::int8 || type == DType::float8_e4m3;
}

// Elements from one row of a matrix to the next; W is its element type.
template <typename W>
constexpr std::int64_t row_stride(std::int64_t in) {
  return sizeof(W) == 1 ? (in + 15) / 16 * 16 : in;
}

inline constexpr int kScaleRows = 8, kScaleInputs = 128, kScaleGroups = kScaleInputs / int{kInt8Group};
inline constexpr int kScaleBlockBytes = kScaleRows * kScaleGroups * 2;

constexpr std::int64_t scale_blocks_of_row(std::int64_t in) {
  return (in + kScaleInputs - 1) / kScaleInputs;
}
constexpr std::int64_t scale_blocks(std::int64_t out, std::int64_t in) {
  return (out + kScaleRows - 1) / kScaleRows * scale_blocks_of_row(in);
}
// The index of a scale among those of its matrix [out, in].
constexpr std::int64_t scale_index(std::int64_t in, std::int64_t row, std::int64_t group) {
  const std::int64_t block = row / kScaleRows * scale_blocks_of_row(in) + group / kScaleGroups;
  return (block * kScaleRows + row % kScaleRows) * kScaleGroups + group % kScaleGroups;
}

// The type that a weight is kept in; none where a GPU does not take it: 8-bit types are for matrices alone.
constexpr std::optional<DType> kept_on_device(WeightRole role, DType stored, DType activations) {
  if (is_8bit(stored)) return role == WeightRole::matrix ? std::optional(stored) : std::nullopt;
  switch (role) {
    case WeightRole::matrix:
    case WeightRole::tied_embedding:
      return activations;
    case WeightRole::embedding:
      return stored;
    case WeightRole::router:
    case WeightRole::vector:
      return DType::float32;
  }
  return std::nullopt;
}

// Of a weight kept as `kept`; both in one piece of memory, the scales after the elements, `scales_at` bytes from
// the first.
struct DeviceWeightBytes {
  std::int64_t elements = 0, scales = 0;
  static constexpr std::int64_t kAlignment = 256;

  static constexpr std::int64_t aligned(std::int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  constexpr std::int64_t scales_at() const { return aligned(elements); }
  // What the piece takes of a device.
  constexpr std::int64_t taken() const { return aligned(elements) + aligned(scales); }
};
constexpr DeviceWeightBytes device_weight_bytes(DType kept, std::int64_t count, std::int64_t out,
                                                std::int64_t in) {
  if (kept == DType::int8)
    return {count * out * row_stride<Int8>(in), count * scale_blocks(out, in) * kScaleBlockBytes};
  if (kept == DType::float8_e4m3)
    return {count * out * row_stride<Float8>(in), count * out * std::int64_t{sizeof(float)}};
  return {count * out * in * static_cast<std::int64_t>(size_of(kept)), 0};
}

// Memory that products of many rows widen parts of 8-bit matrices into: small enough for the L2 cache. Of a
// device that has any such matrix.
inline constexpr std::int64_t kWidenedBytes = std::int64_t{32} << 20;

}  // namespace ptrt::cuda
