// Loads weights into the memory of the CPU backend: chooses the type each is kept in, and packs
// matrices. A weight that is in its file just as it would be kept is mapped and used in place.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/convert.h"
#include "kernels/cpu/host/memory.h"
#include "kernels/cpu/host/thread_pool.h"
#include "kernels/cpu/weights/packed.h"
#include "kernels/make_cpu_backend.h"
#include "kernels/weight_source.h"

namespace ptrt {

class WeightLoader {
 public:
  WeightLoader(const CpuOptions& options, ThreadPool& pool)
      : options_(options),
        pool_(pool),
        arena_(options.weights),
        buffers_(static_cast<std::size_t>(pool.threads())) {}

  // Every thread reads from the sources, in pieces that stay in its second-level cache until they
  // are packed. Throws bad_input on a type that does not fit the options, before it reads anything.
  std::vector<Weight> load(std::span<const WeightLoad> loads);
  std::size_t bytes() const { return bytes_; }                // of weights loaded so far
  std::size_t mapped_bytes() const { return mapped_bytes_; }  // of these, what was not copied

 private:
  // What a thread reads a piece into and converts it in.
  struct Buffers {
    std::vector<std::byte> rows;
    std::vector<std::uint16_t> scales;  // int8 alone
    std::vector<float> wide;
    std::vector<std::uint16_t> rounded;
    Int8Rows quantized;
  };

  // A weight, its place in memory and how it is cut into tasks, runs of whole rows of one matrix.
  struct Job {
    WeightSpec spec;  // as widened
    WeightSource* source = nullptr;
    Weight weight;
    std::byte* to = nullptr;  // null: the weight is mapped
    std::int64_t rows_per_task = 0, tasks_per_matrix = 0;
    std::int64_t first_task = 0;  // among those of all jobs
  };

  Job plan(const WeightSpec& spec, WeightSource& source);
  // Uses the source's mapping as the weight, if it has one.
  bool map(Job& job);
  void run_task(const Job& job, std::int64_t task, Buffers& buffers);
  void load_vector(const Job& job, Buffers& buffers);
  void load_packed(const Job& job, std::int64_t matrix, std::int64_t row, std::int64_t count,
                   Buffers& buffers);
  // Rows [first, first + count) of the weight, of which buffers.rows holds from number `row` on, as
  // one panel.
  void pack_rows(const Job& job, std::int64_t first, std::int64_t row, std::int64_t count, Buffers& buffers,
                 std::byte* to);

  CpuOptions options_;
  ThreadPool& pool_;
  WeightArena arena_;
  std::vector<std::shared_ptr<const std::byte>> mappings_;
  std::size_t bytes_ = 0, mapped_bytes_ = 0;
  std::vector<Buffers> buffers_;  // [threads]
};

}  // namespace ptrt
