// Sync schedule, page allocator, metrics, output text, replica shares, fault points, head rows.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <numeric>
#include <set>

#include "kernels/base/error.h"
#include "runtime/comm/fault.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/vocab_head.h"
#include "runtime/serving/engine.h"
#include "runtime/serving/metrics.h"
#include "runtime/serving/output_text.h"
#include "runtime/sync/sync_schedule.h"

namespace ptrt {
namespace {

TEST(SyncSchedule, IrregularBlocks) {
  ModelConfig config;
  config.tracks = 4;
  config.layers = 6;
  config.sync_layers = {1, 3, 6};
  const SyncSchedule schedule(config);
  EXPECT_EQ(schedule.sync_points(), 3);
  const std::int64_t begins[] = {0, 1, 3}, ends[] = {1, 3, 6};
  ASSERT_EQ(schedule.blocks(), 3);
  for (std::int64_t b = 0; b < 3; b++) {
    EXPECT_EQ(schedule.layers_of(b).begin, begins[b]);
    EXPECT_EQ(schedule.layers_of(b).end, ends[b]);
  }
  config.tracks = 1;
  EXPECT_EQ(SyncSchedule(config).sync_points(), 0);
}

TEST(PageAllocator, HandsOutEveryPageOnce) {
  PageAllocator allocator(5);
  std::vector<std::int32_t> pages;
  while (allocator.free() > 0) pages.push_back(allocator.take());
  EXPECT_EQ(std::set<std::int32_t>(pages.begin(), pages.end()), (std::set<std::int32_t>{0, 1, 2, 3, 4}));
  EXPECT_THROW(allocator.take(), Error);
  allocator.give_back(pages);
  EXPECT_EQ(allocator.free(), 5);
  EXPECT_TRUE(pages.empty());
}

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

TEST(Metrics, DeviceIdleIsThatOfRanksThatReplay) {
  RankReport on_cpu, first, second;
  EXPECT_FALSE(summarize({on_cpu}).device_idle_fraction.has_value());
  first.counters.replay_busy_s = 3, first.counters.replay_idle_s = 1;
  second.counters.replay_busy_s = 1;
  const RunSummary s = summarize({on_cpu, parse_report(serialize(first)), second});
  EXPECT_DOUBLE_EQ(s.device_idle_fraction.value_or(-1), 0.125);
}

class LetterTokenizer final : public Tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view) const override { return {}; }
  std::string token_bytes(std::int32_t id) const override {
    return id < 0 ? "" : std::string(static_cast<std::size_t>(id / 26 + 1), static_cast<char>('a' + id % 26));
  }
};

TEST(OutputText, StopsBeforeTheFirstMatchOverTokenBorders) {
  const LetterTokenizer tokenizer;
  const std::vector<std::string> stop{"cdd", "bc"};
  OutputText text(&tokenizer, stop);
  EXPECT_FALSE(text.append(0));   // a
  EXPECT_FALSE(text.append(1));   // b
  EXPECT_FALSE(text.append(-1));  // special: no text
  EXPECT_TRUE(text.append(2));    // c: "bc" is complete
  EXPECT_EQ(text.bytes(), "a");
}

TEST(OutputText, TheEarliestOfTwoMatchesInOneToken) {
  const LetterTokenizer tokenizer;
  const std::vector<std::string> stop{"dd", "cd"};
  OutputText text(&tokenizer, stop);
  EXPECT_FALSE(text.append(2));
  EXPECT_TRUE(text.append(26 + 3));  // "dd": both "cd" and "dd" match; "cd" begins first
  EXPECT_EQ(text.bytes(), "");
}

TEST(Replicas, ShareEveryRequestOnce) {
  std::vector<Request> requests(50);
  for (std::size_t i = 0; i < requests.size(); i++) {
    requests[i].tokens.assign(1 + i * 7 % 13, 0);
    requests[i].max_tokens = static_cast<std::int64_t>(1 + i % 5);
  }
  std::vector<std::int64_t> pending(50), seen;
  std::iota(pending.begin(), pending.end(), 0);
  pending.erase(pending.begin() + 3);
  std::vector<std::int64_t> loads;
  for (std::int64_t replica = 0; replica < 4; replica++) {
    const auto mine = requests_of_replica(requests, pending, 4, replica);
    EXPECT_TRUE(std::is_sorted(mine.begin(), mine.end()));
    std::int64_t load = 0;
    for (const auto i : mine) load += requests[static_cast<std::size_t>(i)].cached_tokens() + 1;
    loads.push_back(load);
    seen.insert(seen.end(), mine.begin(), mine.end());
  }
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(seen, pending);
  EXPECT_LE(*std::max_element(loads.begin(), loads.end()) - *std::min_element(loads.begin(), loads.end()),
            18);
}

TEST(Fault, FiresAtItsPointAndRank) {
  setenv("PTRT_FAULT", "rank=1,at=step,after=2", 1);
  arm_faults(0);
  EXPECT_NO_THROW(fault_point("step"));
  arm_faults(1);
  EXPECT_NO_THROW(fault_point("step"));
  EXPECT_NO_THROW(fault_point("sync"));
  EXPECT_NO_THROW(fault_point("step"));
  EXPECT_THROW(fault_point("step"), Error);
  setenv("PTRT_FAULT", "rank=1,at=step,after=1,pause_ms=20", 1);
  arm_faults(1);
  const auto seconds = [] {
    const auto start = std::chrono::steady_clock::now();
    fault_point("step");
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  seconds();
  EXPECT_GE(seconds(), 0.02) << "slow from the second time on";
  EXPECT_GE(seconds(), 0.02);
  setenv("PTRT_FAULT", "rank=1,at=nowhere", 1);
  EXPECT_THROW(arm_faults(1), Error);
  unsetenv("PTRT_FAULT");
  arm_faults(1);
}

TEST(VocabHead, RowsOfRanksCoverTheVocabularyOnce) {
  for (const std::int64_t vocab : {16, 259, 1000, 32000})
    for (const std::int64_t ranks : {2, 3, 8, 16}) {
      std::int64_t next = 0;
      for (std::int64_t rank = 0; rank < ranks; rank++) {
        const HeadRows rows = head_rows_of(vocab, ranks, rank);
        EXPECT_EQ(rows.first, next);
        EXPECT_GE(rows.count, 1);
        next += rows.count;
      }
      EXPECT_EQ(next, vocab);
    }
}

TEST(VocabHead, StaysWholeWhereARankWouldHaveNothing) {
  EXPECT_EQ(head_rows_of(32000, 1, 0).count, 0);
  EXPECT_EQ(head_rows_of(10, 8, 0).count, 0) << "two rows a rank leave none for the last three";
  EXPECT_EQ(head_rows_of(3, 4, 0).count, 0);
}

}  // namespace
}  // namespace ptrt
