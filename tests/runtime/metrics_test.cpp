#include "runtime/serving/metrics.h"

#include <gtest/gtest.h>

namespace ptrt {
namespace {

TEST(Metrics, PercentilesInterpolate) {
  const Percentiles p = percentiles({4, 1, 3, 2});
  EXPECT_DOUBLE_EQ(p.mean, 2.5);
  EXPECT_DOUBLE_EQ(p.p50, 2.5);
  EXPECT_DOUBLE_EQ(p.p90, 3.7);
  EXPECT_DOUBLE_EQ(percentiles({}).p99, 0);
}

TEST(Metrics, ReplicasAddUp) {
  RankReport leader;
  leader.leads_replica = true;
  leader.counters = {.steps = 10,
                     .decode_tokens = 90,
                     .fusions = 20,
                     .track_sums = 40,
                     .sync_s = 1,
                     .sync_wait_s = 0.5,
                     .step_s = 4,
                     .decode_s = 3,
                     .elapsed_s = 5};
  leader.timings = {{7, 11, 0.5, 1.5, {0.1f, 0.3f}}};
  RankReport follower = leader;
  follower.leads_replica = false;
  follower.counters.sync_s = 3;
  RankReport other = leader;
  other.counters.elapsed_s = 10;
  const RunSummary s = summarize({parse_report(serialize(leader)), follower, other});
  EXPECT_EQ(s.requests, 2);
  EXPECT_EQ(s.output_tokens, 22);
  EXPECT_DOUBLE_EQ(s.output_tokens_per_s, 2.2);
  EXPECT_DOUBLE_EQ(s.decode_tokens_per_s, 60);
  EXPECT_DOUBLE_EQ(s.fusions_per_forward, 2);
  EXPECT_DOUBLE_EQ(s.track_sums_per_forward, 4);
  EXPECT_DOUBLE_EQ(s.sync_points_per_forward, 6);
  EXPECT_NEAR(s.sync_wait_fraction, 0.125, 1e-12);
  EXPECT_NEAR(s.sync_move_fraction, s.sync_time_fraction - 0.125, 1e-12);
  EXPECT_NEAR(s.sync_time_fraction, (0.25 + 0.75 + 0.25) / 3, 1e-12);
  EXPECT_DOUBLE_EQ(s.ttft_ms.mean, 500);
  EXPECT_DOUBLE_EQ(s.tpot_ms.mean, 100);
  EXPECT_NEAR(s.itl_ms.mean, 200, 1e-4);
  EXPECT_DOUBLE_EQ(s.e2el_ms.mean, 1500);
  EXPECT_NEAR(s.sync_points_per_output_token, 6.0 * 20 / 22, 1e-12);
  EXPECT_TRUE(s.sync_wait_known);
  other.counters.sync_wait_known = false;
  EXPECT_FALSE(summarize({leader, parse_report(serialize(other))}).sync_wait_known);
}

TEST(Metrics, TimingsOfManyRequestsAreAnEvenSample) {
  RankReport report;
  report.leads_replica = true;
  TimingSample sample(report);
  constexpr std::int64_t kRequests = 100000;
  for (std::int64_t i = 0; i < kRequests; i++) sample.add({3, 1, 1e-3 * static_cast<double>(i), 1, {}});
  EXPECT_LE(report.timings.size(), TimingSample::kMost);
  EXPECT_GE(report.timings.size(), TimingSample::kMost / 4);
  const RunSummary s = summarize({parse_report(serialize(report))});
  EXPECT_EQ(s.requests, kRequests);
  EXPECT_EQ(s.prompt_tokens, 3 * kRequests);
  EXPECT_EQ(s.output_tokens, kRequests);
  EXPECT_NEAR(s.ttft_ms.p50, kRequests / 2.0, 0.01 * kRequests);
  EXPECT_NEAR(s.ttft_ms.p99, 0.99 * kRequests, 0.01 * kRequests);
}

TEST(Metrics, FewTimingsAreAllKept) {
  RankReport report;
  TimingSample sample(report);
  for (std::size_t i = 0; i + 1 < TimingSample::kMost; i++) sample.add({1, 1, 1, 1, {}});
  EXPECT_EQ(report.timings.size(), TimingSample::kMost - 1);
  EXPECT_EQ(report.other_requests, 0);
}

TEST(Metrics, DeviceIdleIsThatOfRanksThatReplay) {
  RankReport on_cpu, first, second;
  EXPECT_FALSE(summarize({on_cpu}).device_idle_fraction.has_value());
  first.counters.replay_busy_s = 3, first.counters.replay_idle_s = 1;
  second.counters.replay_busy_s = 1;
  const RunSummary s = summarize({on_cpu, parse_report(serialize(first)), second});
  EXPECT_DOUBLE_EQ(s.device_idle_fraction.value_or(-1), 0.125);
}

}  // namespace
}  // namespace ptrt
