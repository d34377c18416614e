// A count of work done: pieces of weights loaded, lines parsed, results stored, sums between ranks. The watchdog looks whether it changes.
#pragma once

#include <atomic>
#include <cstdint>

namespace ptrt {

inline std::atomic<std::uint64_t> g_progress_count{0};

// By any thread; once for a hundred kilobytes or a line.
inline void note_progress() noexcept {
  g_progress_count.fetch_add(1, std::memory_order_relaxed);
}
inline std::uint64_t progress_count() noexcept {
  return g_progress_count.load(std::memory_order_relaxed);
}

}  // namespace ptrt
