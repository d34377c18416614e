// One sum over CPU ranks, as the algorithms of host_all_reduce.h take it.
#pragma once

#include <cstdint>
#include <span>

namespace ptrt {

// All give the same bits.
enum class AllReduceAlgorithm : std::uint8_t {
  shm_one_shot,  // in shared memory, every rank adds everything
  shm_two_shot,  // in shared memory, every rank adds a slice and copies the others' slices
  one_shot,      // by messages: all-gather, every rank adds everything
  root,          // gather to rank 0, which adds and broadcasts
  two_shot,      // reduce-scatter, then all-gather
  two_level,     // in shared memory within each host, by messages between one rank of each
};

// out = scale · tree(parts of all ranks) (+ add_to), `count` values.
struct AllReduceJob {
  std::span<const float* const> local;  // this rank's parts, each [count]
  std::int64_t count;
  float scale;
  const float* add_to;  // may be null or out
  float* out;           // may be one of the parts
};

// Values that each of `ranks` ranks adds in a two-shot sum; the last ranks may have fewer, or none.
inline std::int64_t slice_width(std::int64_t count, int ranks) {
  return (count + ranks - 1) / ranks;
}

}  // namespace ptrt
