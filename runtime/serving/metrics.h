// The figures of a run: latencies of its requests, and their summary with the engine's counters.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/serving/run_counters.h"

namespace ptrt {

struct RequestTiming {
  std::int64_t prompt_tokens = 0, output_tokens = 0;
  double first_token_s = 0, finish_s = 0;  // since arrival, queueing included
  std::vector<float> gaps_s;               // between a token and the one before it
  std::int64_t samples = 1;                // that the output tokens are of
};

struct Percentiles {
  double mean = 0, p50 = 0, p90 = 0, p99 = 0;
};
// Linear interpolation between order statistics, as numpy.percentile; zeros for no samples.
Percentiles percentiles(std::vector<double> samples);

// A whole job: replicas' requests pooled, counters of replica leaders added, times of the slowest.
struct RunSummary {
  std::int64_t requests = 0, failed = 0;
  std::int64_t prompt_tokens = 0, output_tokens = 0;
  // Time to first token; per output token of a request after its first; between two tokens; to the
  // last token.
  Percentiles ttft_ms, tpot_ms, itl_ms, e2el_ms;
  double elapsed_s = 0;          // that the rates of tokens and requests count: the engine's, or count_over()
  std::optional<double> load_s;  // not part of it, where a run tells the two apart
  double output_tokens_per_s = 0, total_tokens_per_s = 0, requests_per_s = 0;
  double prefill_tokens_per_s = 0, decode_tokens_per_s = 0;
  double sync_points_per_forward = 0;  // fusions and sums within tracks
  double fusions_per_forward = 0, track_sums_per_forward = 0;
  double sync_time_fraction = 0;      // share of step time in sync points, mean over ranks; of it:
  double sync_wait_fraction = 0;      // until the slowest rank had sent its part
  double sync_move_fraction = 0;      // the rest: moving and adding
  bool sync_wait_known = true;        // whether these two were measured
  double sync_bytes_per_forward = 0;  // sent by a rank, mean over ranks
  double sync_points_per_output_token = 0, sync_bytes_per_output_token = 0;  // fewer with a larger batch
  // The same of the exchanges of a split vocabulary head; zeros where it is not split.
  double head_exchanges_per_forward = 0, head_bytes_per_forward = 0, head_time_fraction = 0;
  // The share of time that a device idled between steps it replayed one after the other; mean over
  // the ranks that replay, none where none does.
  std::optional<double> device_idle_fraction;
  std::uint64_t preemptions = 0;
  std::uint64_t reused_tokens = 0, cannot_reuse = 0;      // RunCounters
  std::uint64_t drafted_tokens = 0, accepted_tokens = 0;  // by speculation

  double acceptance() const {
    return drafted_tokens > 0 ? static_cast<double>(accepted_tokens) / static_cast<double>(drafted_tokens)
                              : 0;
  }
};

struct RankReport {
  bool leads_replica = false;
  RunCounters counters;
  // Of a replica's leader: requests that gave a result. Of many, `timings` is an even sample, and the rest
  // are only counted.
  std::vector<RequestTiming> timings;
  std::int64_t other_requests = 0, other_prompt_tokens = 0, other_output_tokens = 0;
  std::int64_t failed = 0;  // gave none
};

// Keeps the timings of a report within bounds, for runs of any number of requests: every one of up to kMost, of
// more every 2nd, 4th, ...
class TimingSample {
 public:
  static constexpr std::size_t kMost = 4096;

  explicit TimingSample(RankReport& report) : report_(report) {}
  void add(RequestTiming&& timing);

 private:
  void count_only(const RequestTiming& timing);

  RankReport& report_;
  std::int64_t stride_ = 1, seen_ = 0;
};

std::string serialize(const RankReport& report);
RankReport parse_report(const std::string& text);

RunSummary summarize(const std::vector<RankReport>& ranks);
// Makes `seconds` the time that the rates of tokens and requests count.
void count_over(RunSummary& summary, double seconds);

}  // namespace ptrt
