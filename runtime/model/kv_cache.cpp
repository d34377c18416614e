#include "runtime/model/kv_cache.h"

#include "kernels/base/error.h"

namespace ptrt {

std::int64_t kv_page_bytes(const ModelConfig& config, std::int64_t local_tracks, DType dtype) {
  return local_tracks * config.layers * 2 * config.kv_heads * config.head_dim * kPageTokens *
         static_cast<std::int64_t>(size_of(dtype));
}

PageAllocator::PageAllocator(std::int64_t pages) : total_(pages) {
  free_.reserve(static_cast<std::size_t>(pages));
  for (std::int64_t page = pages - 1; page >= 0; page--) free_.push_back(static_cast<std::int32_t>(page));
}

std::int32_t PageAllocator::take() {
  PTRT_CHECK(!free_.empty());
  const std::int32_t page = free_.back();
  free_.pop_back();
  return page;
}

void PageAllocator::give_back(std::int32_t page) {
  free_.push_back(page);
  PTRT_CHECK(free() <= total_);
}

KvCache::KvCache(Backend& backend, const ModelConfig& config, std::int64_t local_tracks, std::int64_t pages,
                 DType dtype) {
  pool_.dtype = dtype;
  pool_.tracks = local_tracks;
  pool_.layers = config.layers;
  pool_.pages = pages;
  pool_.kv_heads = config.kv_heads;
  pool_.head_dim = config.head_dim;
  memory_ = backend.allocate(pool_.bytes(), "the KV cache");
  pool_.data = memory_.get();
}

}  // namespace ptrt
