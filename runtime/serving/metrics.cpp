#include "runtime/serving/metrics.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace ptrt {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RequestTiming, prompt_tokens, output_tokens, first_token_s, finish_s,
                                   gaps_s, samples)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RunCounters, steps, prefill_tokens, decode_tokens, drafted_tokens,
                                   accepted_tokens, preemptions, reused_tokens, cannot_reuse, fusions,
                                   track_sums, sync_bytes, sync_s, sync_wait_s, sync_wait_known,
                                   head_exchanges, head_bytes, head_s, replay_busy_s, replay_idle_s, step_s,
                                   prefill_s, decode_s, elapsed_s)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RankReport, leads_replica, counters, timings, other_requests,
                                   other_prompt_tokens, other_output_tokens, failed)

void TimingSample::add(RequestTiming&& timing) {
  if (seen_++ % stride_ != 0) return count_only(timing);
  auto& timings = report_.timings;
  timings.push_back(std::move(timing));
  if (timings.size() < kMost) return;
  for (std::size_t i = 0; i < timings.size(); i++)
    if (i % 2 == 0)
      timings[i / 2] = std::move(timings[i]);
    else
      count_only(timings[i]);
  timings.resize(timings.size() / 2);
  stride_ *= 2;
}

void TimingSample::count_only(const RequestTiming& timing) {
  report_.other_requests++;
  report_.other_prompt_tokens += timing.prompt_tokens;
  report_.other_output_tokens += timing.output_tokens;
}

std::string serialize(const RankReport& report) {
  return nlohmann::json(report).dump();
}
RankReport parse_report(const std::string& text) {
  return nlohmann::json::parse(text).get<RankReport>();
}

Percentiles percentiles(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::ranges::sort(samples);
  const auto at = [&](double q) {
    const double place = q * static_cast<double>(samples.size() - 1);
    const auto low = static_cast<std::size_t>(place);
    const std::size_t high = std::min(low + 1, samples.size() - 1);
    return samples[low] + (place - static_cast<double>(low)) * (samples[high] - samples[low]);
  };
  double sum = 0;
  for (const double s : samples) sum += s;
  return {sum / static_cast<double>(samples.size()), at(0.5), at(0.9), at(0.99)};
}

namespace {

double rate(double amount, double seconds) {
  return seconds > 0 ? amount / seconds : 0;
}

// Samples in milliseconds.
struct Latencies {
  std::vector<double> ttft, tpot, itl, e2el;
};

void add_timing(const RequestTiming& timing, RunSummary& summary, Latencies& latencies) {
  summary.requests++;
  summary.prompt_tokens += timing.prompt_tokens;
  summary.output_tokens += timing.output_tokens;
  if (timing.output_tokens >= 1) {
    latencies.ttft.push_back(1e3 * timing.first_token_s);
    latencies.e2el.push_back(1e3 * timing.finish_s);
  }
  for (const float gap : timing.gaps_s) latencies.itl.push_back(1e3 * gap);
  const double after_first =
      static_cast<double>(timing.output_tokens) / static_cast<double>(timing.samples) - 1;
  if (after_first >= 1)
    latencies.tpot.push_back(1e3 * (timing.finish_s - timing.first_token_s) / after_first);
}

}  // namespace

void count_over(RunSummary& summary, double seconds) {
  summary.elapsed_s = seconds;
  summary.output_tokens_per_s = rate(static_cast<double>(summary.output_tokens), seconds);
  summary.total_tokens_per_s =
      rate(static_cast<double>(summary.prompt_tokens + summary.output_tokens), seconds);
  summary.requests_per_s = rate(static_cast<double>(summary.requests), seconds);
}

RunSummary summarize(const std::vector<RankReport>& ranks) {
  RunSummary summary;
  Latencies latencies;
  std::uint64_t steps = 0, fusions = 0, track_sums = 0, head_exchanges = 0;
  double sync_share = 0, wait_share = 0, sync_bytes = 0, head_share = 0, head_bytes = 0;
  double idle_share = 0;
  std::size_t active = 0, replaying = 0;
  for (const RankReport& rank : ranks) {
    const RunCounters& c = rank.counters;
    if (c.steps > 0) active++;  // a replica without work had no sync points
    sync_share += rate(c.sync_s, c.step_s);
    wait_share += rate(c.sync_wait_s, c.step_s);
    summary.sync_wait_known &= c.sync_wait_known;
    sync_bytes += rate(static_cast<double>(c.sync_bytes), static_cast<double>(c.steps));
    if (const double replay_s = c.replay_busy_s + c.replay_idle_s; replay_s > 0) {
      idle_share += c.replay_idle_s / replay_s;
      replaying++;
    }
    head_share += rate(c.head_s, c.step_s);
    head_bytes += rate(static_cast<double>(c.head_bytes), static_cast<double>(c.steps));
    if (!rank.leads_replica) continue;
    for (const RequestTiming& timing : rank.timings) add_timing(timing, summary, latencies);
    summary.requests += rank.other_requests;
    summary.prompt_tokens += rank.other_prompt_tokens;
    summary.output_tokens += rank.other_output_tokens;
    summary.failed += rank.failed;
    steps += c.steps;
    fusions += c.fusions;
    track_sums += c.track_sums;
    head_exchanges += c.head_exchanges;
    summary.preemptions += c.preemptions;
    summary.reused_tokens += c.reused_tokens;
    summary.cannot_reuse += c.cannot_reuse;
    summary.drafted_tokens += c.drafted_tokens;
    summary.accepted_tokens += c.accepted_tokens;
    summary.elapsed_s = std::max(summary.elapsed_s, c.elapsed_s);
    summary.prefill_tokens_per_s += rate(static_cast<double>(c.prefill_tokens), c.prefill_s);
    summary.decode_tokens_per_s += rate(static_cast<double>(c.decode_tokens), c.decode_s);
  }
  summary.ttft_ms = percentiles(std::move(latencies.ttft));
  summary.tpot_ms = percentiles(std::move(latencies.tpot));
  summary.itl_ms = percentiles(std::move(latencies.itl));
  summary.e2el_ms = percentiles(std::move(latencies.e2el));
  count_over(summary, summary.elapsed_s);
  summary.fusions_per_forward = rate(static_cast<double>(fusions), static_cast<double>(steps));
  summary.track_sums_per_forward = rate(static_cast<double>(track_sums), static_cast<double>(steps));
  summary.sync_points_per_forward = summary.fusions_per_forward + summary.track_sums_per_forward;
  const auto count = static_cast<double>(std::max<std::size_t>(active, 1));
  summary.sync_time_fraction = sync_share / count;
  summary.sync_wait_fraction = wait_share / count;
  summary.sync_move_fraction = summary.sync_time_fraction - summary.sync_wait_fraction;
  summary.sync_bytes_per_forward = sync_bytes / count;
  const auto forwards_per_token =
      rate(static_cast<double>(steps), static_cast<double>(summary.output_tokens));
  summary.sync_points_per_output_token = summary.sync_points_per_forward * forwards_per_token;
  summary.sync_bytes_per_output_token = summary.sync_bytes_per_forward * forwards_per_token;
  summary.head_exchanges_per_forward = rate(static_cast<double>(head_exchanges), static_cast<double>(steps));
  summary.head_bytes_per_forward = head_bytes / count;
  summary.head_time_fraction = head_share / count;
  if (replaying > 0) summary.device_idle_fraction = idle_share / static_cast<double>(replaying);
  return summary;
}

}  // namespace ptrt
