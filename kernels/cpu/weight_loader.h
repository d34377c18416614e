// Takes weights into the memory of the CPU backend: decides the type each is kept in and packs matrices on
// the way.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/convert.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/packed.h"
#include "kernels/cpu/thread_pool.h"

namespace ptrt {

class WeightLoader {
 public:
  WeightLoader(const CpuOptions& options, ThreadPool& pool)
      : options_(options), pool_(pool), buffers_(static_cast<std::size_t>(pool.threads())) {}

  // Reads the source from every thread, in pieces that stay in a thread's second-level cache until they are
  // packed. Throws bad_input on a type that does not go with the options.
  Weight load(const WeightSpec& spec, WeightSource& source);
  std::size_t bytes() const { return bytes_; }  // of weights loaded so far

 private:
  // What a thread reads a piece into and converts it in.
  struct Buffers {
    std::vector<std::byte> rows;
    std::vector<std::uint16_t> scales;  // int8 alone
    std::vector<float> wide;
    std::vector<std::uint16_t> rounded;
    Int8Rows quantized;
  };

  DType kept_type(const WeightSpec& spec) const;
  void load_rows(const WeightSpec& spec, WeightSource& source, std::byte* to);
  void load_vector(const WeightSpec& spec, WeightSource& source, std::byte* to);
  void load_packed(const WeightSpec& spec, WeightSource& source, const PackedLayout& layout, std::byte* to);

  void pack_rows(const WeightSpec& spec, const PackedLayout& layout, std::int64_t first, std::int64_t row,
                 std::int64_t count, Buffers& buffers, std::byte* to);

  CpuOptions options_;
  ThreadPool& pool_;
  WeightArena arena_;
  std::size_t bytes_ = 0;
  std::vector<Buffers> buffers_;  // [threads]
};

}  // namespace ptrt
