// One sum over CPU ranks, as the algorithms of host_all_reduce.h take it.
#pragma once

#include <cstdint>
#include <span>

namespace ptrt {

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
