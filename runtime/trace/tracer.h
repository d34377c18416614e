// Records what a rank does and when, for --trace. Whoever records holds a pointer that is null where nothing is
// traced.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kernels/base/clock.h"

namespace ptrt {

struct TraceEvent {
  const char* name;    // a string literal
  const char* detail;  // what `value` counts, a string literal; null: there is no value
  std::int64_t value;
  std::int64_t start_ns, end_ns;  // by now_ns()
  int thread;                     // 0: the first that recorded, usually the decode loop's
};

class Tracer {
 public:
  // Keeps the first `most_events`; memory is touched as they come.
  explicit Tracer(std::size_t most_events);

  // By any thread.
  void add(const char* name, std::int64_t start_ns, std::int64_t end_ns, const char* detail = nullptr,
           std::int64_t value = 0);

  // While no thread records.
  std::span<const TraceEvent> events() const;
  std::size_t dropped() const;  // beyond the most

 private:
  std::size_t most_;
  std::unique_ptr<TraceEvent[]> events_;
  std::atomic<std::size_t> count_ = 0;  // recorded and dropped
};

// Records the time of a scope. `tracer` may be null.
class TraceSpan {
 public:
  TraceSpan(Tracer* tracer, const char* name, const char* detail = nullptr, std::int64_t value = 0)
      : tracer_(tracer), name_(name), detail_(detail), value_(value), start_ns_(tracer ? now_ns() : 0) {}
  ~TraceSpan() {
    if (tracer_ != nullptr) tracer_->add(name_, start_ns_, now_ns(), detail_, value_);
  }
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  Tracer* tracer_;
  const char *name_, *detail_;
  std::int64_t value_, start_ns_;
};

}  // namespace ptrt
