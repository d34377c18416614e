// --metrics: figures of the job in Prometheus' text format, for the textfile collector of its node exporter. Rank 0
// writes the file anew every 15 seconds, whole each time, and a last time at the end (docs/OBSERVE.md names them).
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/serving/metrics.h"
#include "runtime/serving/run_counters.h"

namespace ptrt {

// What does not change during a job.
struct MetricsInfo {
  std::vector<std::pair<std::string, std::string>> labels;  // of ptrt_info
  std::int64_t ranks = 1, replicas = 1, tracks = 1;
  double start_time_s = 0;  // since 1970
};

struct MetricsNow {
  bool running = true;
  std::int64_t requests = 0, requests_done = 0;
  RunCounters counters;               // of rank 0
  std::optional<RunSummary> summary;  // at the end of a job that has one
};

std::string metrics_text(const MetricsInfo& info, const MetricsNow& now);

// Any thread may call it.
class MetricsFile {
 public:
  // A file that cannot be written is told once and ends nothing.
  MetricsFile(std::string path, MetricsInfo info,
              std::chrono::milliseconds interval = std::chrono::seconds(15));
  ~MetricsFile();  // writes a last time
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  void set_requests(std::int64_t total, std::int64_t done);
  void add_done(std::int64_t requests);
  // Counts so far of a run of the engine; add_run(): it has ended, and the next begins from zero.
  void set_run(const RunCounters& counters);
  void add_run(const RunCounters& counters);
  void set_summary(const RunSummary& summary);

 private:
  void work();
  void write(const MetricsNow& now);

  std::string path_;
  MetricsInfo info_;
  std::chrono::milliseconds interval_;
  std::mutex mutex_;
  std::condition_variable changed_;
  MetricsNow now_;
  RunCounters ended_runs_;
  bool ending_ = false, told_ = false;
  std::thread thread_;  // last member: it starts when the others are constructed
};

}  // namespace ptrt
