// Element types and the non-owning views that the op set of a backend works on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace ptrt {

// int8 is for matrices alone: symmetric, with one float16 scale for every group of kInt8Group
// elements of a row. float8_e4m3 is for matrices alone too: one sign bit, four bits of exponent (bias 7), three of
// fraction, no infinities, largest magnitude 448; with one float32 scale a row.
enum class DType : std::uint8_t { float32, float16, bfloat16, int8, float8_e4m3 };

inline constexpr std::int64_t kInt8Group = 32;

// Type in which matrix products take their inputs; sums are float32 (int8: exact within a group,
// then float32).
enum class Compute : std::uint8_t { float32, bfloat16, int8 };

constexpr std::size_t size_of(DType type) {
  if (type == DType::int8 || type == DType::float8_e4m3) return 1;
  return type == DType::float32 ? 4 : 2;
}

constexpr std::string_view to_string(DType type) {
  switch (type) {
    case DType::float32:
      return "float32";
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::int8:
      return "int8";
    case DType::float8_e4m3:
      return "float8_e4m3fn";
  }
  return "unknown";
}

constexpr std::string_view to_string(Compute compute) {
  switch (compute) {
    case Compute::float32:
      return "float32";
    case Compute::bfloat16:
      return "bfloat16";
    case Compute::int8:
      return "int8";
  }
  return "unknown";
}

// One weight in a backend's memory: a matrix [out, in], a stack of expert matrices [experts, out,
// in], or a vector with out = 1. The backend that loaded it owns the memory and chose its layout;
// nobody else reads `data`.
struct Weight {
  const void* data = nullptr;
  DType dtype = DType::float32;
  std::int64_t count = 1;  // matrices stacked (experts); 1 otherwise
  std::int64_t out = 0;    // rows
  std::int64_t in = 0;     // columns
  bool packed = false;     // in panels (kernels/cpu/weights/packed.h), else row-major
  // Of int8 and float8 matrices that a GPU keeps as they are stored, as cuda/host/weight_layout.h has them. Packed
  // int8 has its scales in its panels.
  const void* scales = nullptr;

  bool present() const { return data != nullptr; }
};

// The same tensor of every track that this rank holds, indexed by local track: one op call serves
// all of them.
using TrackWeights = std::vector<Weight>;

// Activations [tracks, rows, width], the last dimension contiguous. A track_stride of 0 shows one
// matrix to every track (the stream x that all tracks see). float32 on the CPU; elsewhere also
// BackendTraits::activation_dtype.
struct Tensor {
  void* data = nullptr;
  std::int64_t tracks = 1;
  std::int64_t rows = 0;
  std::int64_t width = 0;
  std::int64_t track_stride = 0;  // elements between tracks; rows are `width` elements apart
  DType dtype = DType::float32;

  // T is the type that dtype names.
  template <typename T>
  T* row_as(std::int64_t track, std::int64_t r) const {
    return static_cast<T*>(data) + track * track_stride + r * width;
  }
  float* row(std::int64_t track, std::int64_t r) const { return row_as<float>(track, r); }
  // The first n rows of every track; strides stay.
  Tensor first_rows(std::int64_t n) const { return {data, tracks, n, width, track_stride, dtype}; }
  Tensor track(std::int64_t t) const {
    const std::int64_t bytes = t * track_stride * static_cast<std::int64_t>(size_of(dtype));
    return {data == nullptr ? nullptr : static_cast<std::byte*>(data) + bytes,
            1,
            rows,
            width,
            track_stride,
            dtype};
  }
  // One matrix seen as `n` equal tracks.
  Tensor broadcast(std::int64_t n) const { return {data, n, rows, width, 0, dtype}; }
};

}  // namespace ptrt
