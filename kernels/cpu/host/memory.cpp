#include "kernels/cpu/host/memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <limits>

#include "kernels/base/error.h"
#include "kernels/base/host_memory.h"

namespace ptrt {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kArenaBlock = std::size_t{64} << 20;

std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

[[noreturn]] void throw_no_memory(std::size_t bytes, const std::string& what) {
  constexpr double kMiB = 1 << 20;
  const MemoryLimit limit = memory_limit_of_rank(1);
  throw_failure("not enough memory for {}: {} bytes ({:.1f} MiB) wanted; {} {:.1f} MiB", what, bytes,
                static_cast<double>(bytes) / kMiB,
                limit.source.empty() ? "the host has" : limit.source + " leaves",
                static_cast<double>(limit.bytes) / kMiB);
}

// A mapping of its own that starts on a huge page; fresh pages are zero and cost nothing until they
// are touched.
std::shared_ptr<std::byte[]> map_zeroed(std::size_t bytes, const std::string& what) {
  const std::size_t mapped = bytes + kHugePage;
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) throw_no_memory(bytes, what);
  const auto address = reinterpret_cast<std::uintptr_t>(base);
  auto* start = static_cast<std::byte*>(base) + (round_up(address, kHugePage) - address);
  madvise(start, bytes, MADV_HUGEPAGE);  // advice only: a kernel without huge pages may refuse it
  return {start, [base, mapped](std::byte*) { munmap(base, mapped); }};
}

}  // namespace

std::shared_ptr<std::byte[]> allocate_zeroed(std::size_t bytes, const std::string& what) {
  if (bytes > std::numeric_limits<std::size_t>::max() / 4) throw_no_memory(bytes, what);
  if (bytes >= kHugePage) return map_zeroed(bytes, what);
  // calloc() knows which memory is fresh: it is zero already, and costs nothing until it is
  // touched.
  void* base = std::calloc(1, bytes + kAlignment);
  if (base == nullptr) throw_no_memory(bytes, what);
  const auto address = reinterpret_cast<std::uintptr_t>(base);
  return {static_cast<std::byte*>(base) + (round_up(address, kAlignment) - address),
          [base](std::byte*) { std::free(base); }};
}

float* ScratchFloats::reserve(std::int64_t elements) {
  if (elements > elements_) {
    memory_ = allocate_zeroed(static_cast<std::size_t>(elements) * sizeof(float), "the scratch of a kernel");
    elements_ = elements;
  }
  return reinterpret_cast<float*>(memory_.get());
}

std::byte* WeightArena::take(std::size_t bytes, const std::string& what) {
  const std::size_t size = round_up(bytes, kAlignment);
  if (size > kArenaBlock / 4) {  // a block of its own, so that the rest of the current one is not lost
    blocks_.push_back(memory_->allocate(size, what));
    return blocks_.back().get();
  }
  if (size > left_) {
    blocks_.push_back(memory_->allocate(kArenaBlock, what));
    next_ = blocks_.back().get();
    left_ = kArenaBlock;
  }
  std::byte* piece = next_;
  next_ += size;
  left_ -= size;
  return piece;
}

}  // namespace ptrt
