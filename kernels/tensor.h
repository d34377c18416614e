// Element types and the non-owning views that the op set of a backend works on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace ptrt {

enum class DType : std::uint8_t { float32, float16, bfloat16 };

constexpr std::size_t size_of(DType type) {
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
  }
  return "unknown";
}

// One weight in a backend's memory, in its storage type. Matrices are [out, in] row-major and stacks of
// expert matrices [experts, out, in]; a vector has out = 1. The backend that loaded it owns the memory.
struct Weight {
  const void* data = nullptr;
  DType dtype = DType::float32;
  std::int64_t count = 1;  // matrices stacked (experts); 1 otherwise
  std::int64_t out = 0;    // rows
  std::int64_t in = 0;     // columns

  bool present() const { return data != nullptr; }
  std::size_t bytes() const { return static_cast<std::size_t>(count * out * in) * size_of(dtype); }
};

// The same tensor of every track that this rank holds, indexed by local track: one op call serves all of
// them.
using TrackWeights = std::vector<Weight>;

// Activations [tracks, rows, width], the last dimension contiguous. A track_stride of 0 shows one matrix to
// every track (the stream x that all tracks see). float32 on the CPU.
struct Tensor {
  float* data = nullptr;
  std::int64_t tracks = 1;
  std::int64_t rows = 0;
  std::int64_t width = 0;
  std::int64_t track_stride = 0;  // elements between tracks; rows are `width` elements apart

  float* row(std::int64_t track, std::int64_t r) const { return data + track * track_stride + r * width; }
  // The first n rows of every track; strides stay.
  Tensor first_rows(std::int64_t n) const { return {data, tracks, n, width, track_stride}; }
  // One matrix seen as `n` equal tracks.
  Tensor broadcast(std::int64_t n) const { return {data, n, rows, width, 0}; }
};

}  // namespace ptrt
