#include "runtime/trace/tracer.h"

#include <algorithm>

namespace ptrt {
namespace {

int this_thread() {
  static std::atomic<int> threads{0};
  thread_local const int number = threads.fetch_add(1);
  return number;
}

}  // namespace

// Without initial values: pages of events that never come are never touched.
Tracer::Tracer(std::size_t most_events) : most_(most_events), events_(new TraceEvent[most_events]) {}

void Tracer::add(const char* name, std::int64_t start_ns, std::int64_t end_ns, const char* detail,
                 std::int64_t value) {
  const std::size_t place = count_.fetch_add(1, std::memory_order_relaxed);
  if (place < most_) events_[place] = {name, detail, value, start_ns, end_ns, this_thread()};
}

std::span<const TraceEvent> Tracer::events() const {
  return {events_.get(), std::min(count_.load(), most_)};
}

std::size_t Tracer::dropped() const {
  return count_.load() - events().size();
}

}  // namespace ptrt
