// The watchdog: which rank reports a stall and when, and that progress is no stall.
#include "runtime/comm/watchdog.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>

#include "kernels/make_cpu_backend.h"
#include "runtime/comm/emulated_comm.h"
#include "runtime/comm/watched_comm.h"
#include "runtime/sync/fusion.h"

namespace ptrt {
namespace {

using namespace std::chrono_literals;

// What a watchdog reports while `body` runs; empty: nothing.
std::string reported_during(const WatchdogOptions& options, const std::function<void(Watchdog&)>& body) {
  std::promise<std::string> said;
  auto text = said.get_future();
  Watchdog watchdog(options, [&](const std::string& what, const auto&) { said.set_value(what); });
  watchdog.start();
  body(watchdog);
  watchdog.stop();
  return text.wait_for(0s) == std::future_status::ready ? text.get() : "";
}

// A link so slow that no message arrives in time.
std::unique_ptr<TrackComm> slow_comm(double seconds) {
  return make_emulated_comm(2, {.latency_us = 1e6 * seconds, .gb_per_s = 1});
}

TEST(Watchdog, AStuckRankReportsAtOnce) {
  const auto start = std::chrono::steady_clock::now();
  const std::string text = reported_during({.step_timeout_s = 0.1, .rank = 9}, [](Watchdog& watchdog) {
    watchdog.step_begins();
    watchdog.step_begins();
    std::this_thread::sleep_for(300ms);
  });
  EXPECT_NE(text.find("step 2: stuck for"), std::string::npos) << text;
  EXPECT_NE(text.find("--step-timeout 0.1"), std::string::npos) << text;
  EXPECT_LT(std::chrono::steady_clock::now() - start, 5s);
}

TEST(Watchdog, AWaitingRankIsMorePatient) {
  const auto wait = [](double seconds) {
    return [seconds](Watchdog& watchdog) {
      const auto comm = make_watched_comm(slow_comm(seconds), watchdog, "the other tracks");
      char mine = 'a', all[2] = {};
      comm->all_gather(&mine, all, 1);
    };
  };
  EXPECT_EQ(reported_during({.step_timeout_s = 0.3}, wait(0.4)), "");
  const std::string text = reported_during({.step_timeout_s = 0.1}, wait(1.0));
  EXPECT_NE(text.find("step 0: no word from the other tracks for"), std::string::npos) << text;
  EXPECT_EQ(reported_during({.step_timeout_s = 0.1, .rank = 9}, wait(0.7)), "") << "after rank 0's turn";
}

TEST(Watchdog, StepsAndMessagesAreProgress) {
  const auto busy = [](Watchdog& watchdog) {
    const auto comm = make_watched_comm(slow_comm(0.02), watchdog, "the other tracks");
    char mine = 'a', all[2] = {};
    for (int i = 0; i < 40; i++) {
      if (i % 2 == 0) watchdog.step_begins();
      comm->all_to_all(all, &mine, 0);
      std::this_thread::sleep_for(20ms);
    }
  };
  EXPECT_EQ(reported_during({.step_timeout_s = 1}, busy), "") << "1.6 s in all, 0.04 s between two";
  const auto idle = [](Watchdog&) { std::this_thread::sleep_for(800ms); };
  EXPECT_EQ(reported_during({.step_timeout_s = 0}, idle), "") << "no timeout was given";
  EXPECT_NE(reported_during({.step_timeout_s = 0.1}, idle), "");
  EXPECT_EQ(reported_during({.step_timeout_s = 0.1},
                            [](Watchdog& watchdog) {
                              watchdog.stop();
                              std::this_thread::sleep_for(300ms);
                            }),
            "")
      << "after the run";
}

// A fusion with absent ranks: this rank's own part stands for theirs, at the link's pace.
TEST(EmulatedComm, FusesAtTheLinksPace) {
  constexpr LinkModel kLink{.latency_us = 10000, .gb_per_s = 0.001};
  ModelConfig config;
  config.tracks = 8;
  config.hidden_size = 100;
  config.fusion.op = FusionOp::mean;
  const auto backend = make_cpu_backend({.threads = 1});
  const auto comm = make_emulated_comm(8, kLink);
  StepState state;
  Fusion fusion(*comm, *backend, state, config, make_placement(8, 0, 8), 1, {.emulated = kLink});
  std::vector<float> x(100, 0.0f), y(100, 3.0f);
  fusion.start_step();
  const Tensor stream{x.data(), 1, 1, 100, 100};
  BlockInput input = fusion.exchange(stream, {.y = {y.data(), 1, 1, 100, 100}, .minus = {}});
  fusion.finish(input, stream);
  EXPECT_EQ(x, std::vector<float>(100, 3.0f));
  const double least = kLink.gather_seconds(400 + sizeof(StepHeader), 8);
  EXPECT_GE(fusion.stats().seconds, least);
  EXPECT_LT(fusion.stats().seconds, least + 0.5);
  EXPECT_LT(fusion.stats().wait_seconds, 0.001) << "no rank is slower than this one";
}

}  // namespace
}  // namespace ptrt
