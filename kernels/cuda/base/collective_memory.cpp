#include "kernels/cuda/base/collective_memory.h"

#include <cstdint>
#include <map>
#include <mutex>

namespace ptrt::cuda {
namespace {

// A group has two pieces, a rank two groups at most.
struct Pieces {
  std::mutex mutex;
  std::map<std::uintptr_t, std::size_t> bytes_at;
};
Pieces& pieces() {
  static Pieces all;
  return all;
}

}  // namespace

CollectiveMemory::CollectiveMemory(const void* data, std::size_t bytes) : data_(data) {
  const std::lock_guard lock(pieces().mutex);
  pieces().bytes_at[reinterpret_cast<std::uintptr_t>(data)] = bytes;
}
CollectiveMemory::~CollectiveMemory() {
  const std::lock_guard lock(pieces().mutex);
  pieces().bytes_at.erase(reinterpret_cast<std::uintptr_t>(data_));
}

bool in_collective_memory(const void* data) {
  const auto at = reinterpret_cast<std::uintptr_t>(data);
  const std::lock_guard lock(pieces().mutex);
  const auto after = pieces().bytes_at.upper_bound(at);
  if (after == pieces().bytes_at.begin()) return false;
  const auto& [first, bytes] = *std::prev(after);
  return at - first < bytes;
}

}  // namespace ptrt::cuda
