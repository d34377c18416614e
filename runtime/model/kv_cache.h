// The paged KV cache of a rank: one pool of pages of kPageTokens tokens, which sequences take.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/kv_pool.h"
#include "model_io/config/model_config.h"

namespace ptrt {

// Bytes of one page on a rank with that many local tracks: keys and values of every layer.
std::int64_t kv_page_bytes(const ModelConfig& config, std::int64_t local_tracks, DType dtype);

inline std::int64_t pages_for(std::int64_t tokens) {
  return (tokens + kPageTokens - 1) / kPageTokens;
}

// Free pages as a stack: which page a sequence gets depends on the calls so far alone, so it is the
// same on every rank.
class PageAllocator {
 public:
  explicit PageAllocator(std::int64_t pages);
  std::int64_t total() const { return total_; }
  std::int64_t free() const { return static_cast<std::int64_t>(free_.size()); }
  std::int32_t take();  // requires free() > 0
  void give_back(std::int32_t page);

 private:
  std::int64_t total_;
  std::vector<std::int32_t> free_;
};

// The memory behind the pages.
class KvCache {
 public:
  // `dtype`: float32 or bfloat16; on a GPU BackendTraits::activation_dtype.
  KvCache(Backend& backend, const ModelConfig& config, std::int64_t local_tracks, std::int64_t pages,
          DType dtype);
  const KvPool& pool() const { return pool_; }
  std::int64_t bytes() const { return static_cast<std::int64_t>(pool_.bytes()); }

 private:
  KvPool pool_;
  std::shared_ptr<std::byte[]> memory_;
};

}  // namespace ptrt
