// Takes weights into the memory of the CPU backend: decides the type each is kept in and packs matrices on
// the way.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/packed.h"
#include "kernels/cpu/thread_pool.h"

namespace ptrt {

class WeightLoader {
 public:
  WeightLoader(const CpuOptions& options, ThreadPool& pool) : options_(options), pool_(pool) {}

  // Reads the source in ascending order, in pieces that stay in the second-level cache until they are packed.
  // Throws bad_input on a type that does not go with the options.
  Weight load(const WeightSpec& spec, WeightSource& source);
  std::size_t bytes() const { return bytes_; }  // of weights loaded so far

 private:
  // The rows of one piece as the source gave them.
  struct Piece {
    const std::byte* rows = nullptr;
    const std::uint16_t* scales = nullptr;  // int8 alone
    std::int64_t first = 0, count = 0;      // of the weight's rows
  };

  DType kept_type(const WeightSpec& spec) const;
  Weight load_rows(const WeightSpec& spec, WeightSource& source);
  Weight load_vector(const WeightSpec& spec, WeightSource& source);
  Weight load_packed(const WeightSpec& spec, WeightSource& source);
  void pack_piece(const WeightSpec& spec, const PackedLayout& layout, const Piece& piece, std::byte* to);

  CpuOptions options_;
  ThreadPool& pool_;
  WeightArena arena_;
  std::size_t bytes_ = 0;
  std::vector<std::byte> piece_;             // rows as read
  std::vector<std::uint16_t> piece_scales_;  // int8 alone
};

}  // namespace ptrt
