// The clock that durations and timeouts are measured by.
#pragma once

#include <chrono>
#include <cstdint>

namespace ptrt {

// Nanoseconds of the monotonic clock; all processes on one kernel share it.
inline std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace ptrt
