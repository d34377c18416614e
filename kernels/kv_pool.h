// The memory of keys and values: pages of a fixed number of tokens.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace ptrt {

inline constexpr std::int64_t kPageTokens = 16;  // tokens of one KV page

// The KV pool of a rank, as ops see it; the caller owns `data`. Layout: [page][local
// track][layer][keys, values][kv_head][one head's page]. Pages are outermost, so that only the
// memory of pages in use is ever touched. A head's page holds kPageTokens · head_dim elements in
// the backend's own order (CPU: cpu/attention/kv_layout.h; CUDA: [kPageTokens][head_dim], keys and
// values alike). Elements are float32 or bfloat16 on the CPU, and of
// BackendTraits::activation_dtype on a GPU.
struct KvPool {
  std::byte* data = nullptr;
  DType dtype = DType::float32;
  // `tracks` is the number in memory: an op whose q has fewer works on the first ones.
  std::int64_t tracks = 0, layers = 0, pages = 0, kv_heads = 0, head_dim = 0;

  // The same pool for a caller whose first track is track t of this one. The strides stay.
  KvPool from_track(std::int64_t t) const {
    KvPool part = *this;
    part.data += t * layers * layer_stride() * static_cast<std::int64_t>(size_of(dtype));
    return part;
  }

  // In elements.
  std::int64_t head_stride() const { return kPageTokens * head_dim; }
  std::int64_t layer_stride() const { return 2 * kv_heads * head_stride(); }
  std::int64_t page_stride() const { return tracks * layers * layer_stride(); }
  std::int64_t elements() const { return pages * page_stride(); }
  std::size_t bytes() const { return static_cast<std::size_t>(elements()) * size_of(dtype); }

  // First element of a page's keys, or values, of one head. T is the C++ type of dtype.
  template <typename T>
  T* keys(std::int64_t track, std::int64_t layer, std::int64_t page, std::int64_t head) const {
    return reinterpret_cast<T*>(data) + page * page_stride() + (track * layers + layer) * layer_stride() +
           head * head_stride();
  }
  template <typename T>
  T* values(std::int64_t track, std::int64_t layer, std::int64_t page, std::int64_t head) const {
    return keys<T>(track, layer, page, head) + kv_heads * head_stride();
  }
};

}  // namespace ptrt
