#include "runtime/serving/run_counters.h"

#include "kernels/backend.h"
#include "runtime/model/vocab_head.h"
#include "runtime/sync/all_reduce.h"
#include "runtime/sync/fusion.h"

namespace ptrt {
namespace {

void add(const SyncStats& stats, RunCounters& counters) {
  counters.sync_bytes += stats.bytes_sent;
  counters.sync_s += stats.seconds;
  counters.sync_wait_s += stats.wait_seconds;
  counters.sync_wait_known &= stats.wait_known;
}

}  // namespace

void RunCounters::count_step(double seconds, std::int64_t prefill_rows, bool decoded) {
  steps++;
  step_s += seconds;
  prefill_tokens += static_cast<std::uint64_t>(prefill_rows);
  if (prefill_rows > 0) prefill_s += seconds;
  if (decoded) decode_s += seconds;
}

void CounterSources::reset() const {
  fusion.reset_stats();
  if (tensor_parallel != nullptr) tensor_parallel->stats() = {};
  head.reset_stats();
  backend.mark_idle();
  backend.take_replay_times();
}

void CounterSources::peek(RunCounters& counters) const {
  counters.fusions = fusion.stats().sync_points;
  add(fusion.stats(), counters);
  if (tensor_parallel != nullptr) {
    counters.track_sums = tensor_parallel->stats().sync_points;
    add(tensor_parallel->stats(), counters);
  }
  counters.head_exchanges = head.stats().exchanges;
  counters.head_bytes = head.stats().bytes_sent;
  counters.head_s = head.stats().seconds;
}

void CounterSources::collect(RunCounters& counters) const {
  fusion.settle();
  if (tensor_parallel != nullptr) tensor_parallel->settle();
  head.settle();
  peek(counters);
  if (const auto times = backend.take_replay_times()) {
    counters.replay_busy_s = times->busy_s;
    counters.replay_idle_s = times->idle_s;
  }
}

}  // namespace ptrt
