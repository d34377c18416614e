// Memory of the CPU backend: activations and KV pages one by one, weights in large arenas.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/weight_memory.h"

namespace ptrt {

// Zeroed bytes, at least 64-byte aligned; large blocks start on a 2 MiB page and ask for huge
// pages, which saves the TLB misses of streaming through weights. Throws with `what` and the size
// when there is none.
std::shared_ptr<std::byte[]> allocate_zeroed(std::size_t bytes, const std::string& what);

// Scratch of a kernel: float32, 64-byte aligned. It grows on the first calls and then stays.
class ScratchFloats {
 public:
  // At least `elements`; what it held before is lost when it grows.
  float* reserve(std::int64_t elements);

 private:
  std::shared_ptr<std::byte[]> memory_;
  std::int64_t elements_ = 0;
};

// Hands out pieces of a few large blocks; they live as long as the arena.
class WeightArena {
 public:
  // Blocks are of `memory`; null: of this process's own.
  explicit WeightArena(std::shared_ptr<WeightMemory> memory = nullptr)
      : memory_(memory != nullptr ? std::move(memory) : std::make_shared<WeightMemory>()) {}
  // Pieces come with their content (WeightMemory::adopt).
  bool adopted() const { return memory_->adopted(); }
  // 64-byte aligned.
  std::byte* take(std::size_t bytes, const std::string& what);

 private:
  std::shared_ptr<WeightMemory> memory_;
  std::vector<std::shared_ptr<std::byte[]>> blocks_;
  std::byte* next_ = nullptr;
  std::size_t left_ = 0;
};

}  // namespace ptrt
