// Emulated streams and graphs do what CUDA promises and no more; recorded steps on top of them.
#include "cuda_emulation/stream.h"

#include <gtest/gtest.h>

#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cuda/base/launch.h"
#include "kernels/cuda/host/device_memory.h"
#include "kernels/cuda/host/device_timer.h"
#include "kernels/cuda/host/step_graph.h"

namespace ptrt {
namespace {

void add_kernel(int* to, int value) {
  pdl_trigger_and_wait();
  *to += value;
}
void launch_add(const Stream& stream, int* to, int value) {
  launch({"add", dim3(1), dim3(1), stream.get()}, add_kernel, to, value);
}

TEST(EmulatedStream, RunsWhenWaitedForAndNoEarlier) {
  const Stream stream;
  Event between;
  int sum = 0;
  launch_add(stream, &sum, 1);
  between.record(stream);
  launch_add(stream, &sum, 10);
  EXPECT_EQ(sum, 0);
  between.wait();
  EXPECT_EQ(sum, 1) << "what comes after the event need not have run";
  stream.wait();
  EXPECT_EQ(sum, 11);
}

TEST(EmulatedStream, CopiesTakeWhatIsThereWhenTheyRun) {
  const Stream stream;
  int from = 1, to = 0;
  PTRT_CUDA_CHECK(cudaMemcpyAsync(&to, &from, sizeof to, cudaMemcpyHostToDevice, stream.get()));
  from = 2;  // too early: a device may or may not have copied
  stream.wait();
  EXPECT_EQ(to, 2);
}

TEST(StepGraph, ReplaysWithTheArgumentsOfTheRecording) {
  const Stream stream;
  int sum = 0, value = 1, calls = 0;
  const auto ops = [&] {
    ++calls;
    launch_add(stream, &sum, value);
  };
  cuda::ReplayClock clock(stream);
  const cuda::StepGraph graph(stream, clock, ops);
  stream.wait();
  EXPECT_EQ(sum, 0) << "recording runs nothing";
  value = 100;
  for (int i = 0; i < 3; ++i) graph.launch(stream);
  stream.wait();
  EXPECT_EQ(sum, 3);
  EXPECT_EQ(calls, 1);
}

// The first use of a key runs its ops; then they are recorded, once for every buffer of the clock.
TEST(StepGraph, RecordsAKeyAfterItsFirstTime) {
  const Stream stream;
  cuda::ReplayClock clock(stream);
  cuda::StepGraphs graphs;
  int sum = 0, calls = 0;
  const auto ops = [&] {
    ++calls;
    launch_add(stream, &sum, 1);
  };
  for (const bool called : {true, true, true, false, false})
    EXPECT_EQ(graphs.run({8, 1}, stream, clock, ops), called);
  EXPECT_TRUE(graphs.run({8, 2}, stream, clock, ops)) << "another key";
  stream.wait();
  EXPECT_EQ(sum, 6);
  EXPECT_EQ(calls, 4);
  EXPECT_EQ(graphs.recorded(), 2u);
}

void sleep_kernel(int milliseconds) {
  pdl_trigger_and_wait();
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}
void launch_sleep(const Stream& stream, int milliseconds) {
  launch({"sleep", dim3(1), dim3(1), stream.get()}, sleep_kernel, milliseconds);
}

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Every replay's interval is counted once, although the host reads a step late and replays share
// events.
TEST(ReplayClock, TimesIntervalsInsideReplays) {
  constexpr int kSteps = 7;
  const Stream stream;
  cuda::ReplayClock clock(stream);
  cuda::StepGraphs graphs;
  cuda::EventTimer timer(stream, clock);
  const auto ops = [&] {
    launch_sleep(stream, 5);
    for (int i = 0; i < 2; ++i) {
      timer.begin();
      launch_sleep(stream, 10);
      timer.end();
    }
  };
  double seconds = 0;
  const auto start = Clock::now();
  Event done[2];
  for (int step = 0; step < kSteps; ++step) {
    clock.mark_step_start();
    graphs.run({8, 1}, stream, clock, ops);
    clock.mark_step_end();
    done[step % 2].record(stream);
    if (step > 0) done[(step - 1) % 2].wait();
    seconds += timer.take_seconds(false);
    EXPECT_GE(seconds, 0.020 * step) << "of the finished steps";
    EXPECT_LT(seconds, seconds_since(start) - 0.005 * step) << "no more than the intervals";
  }
  seconds += timer.take_seconds(true);
  EXPECT_GE(seconds, 0.020 * kSteps);
  EXPECT_LT(seconds, seconds_since(start) - 0.005 * kSteps);
}

// Busy time covers a replay and what is queued after its graph; idle time the gap to the next
// replay.
TEST(ReplayClock, TellsBusyFromIdle) {
  const Stream stream;
  cuda::ReplayClock clock(stream);
  cuda::StepGraphs graphs;
  const auto step = [&] {
    clock.mark_step_start();
    graphs.run({8, 1}, stream, clock, [&] { launch_sleep(stream, 10); });
    launch_sleep(stream, 10);
    clock.mark_step_end();
    stream.wait();
  };
  const auto idle = [](int milliseconds) {
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
  };
  for (int i = 0; i < 3; ++i) step();
  EXPECT_EQ(clock.take_times().busy_s, 0) << "neither plain runs nor new recordings count";
  const auto start = Clock::now();
  for (int i = 0; i < 4; ++i) idle(5), step();
  const ReplayTimes times = clock.take_times();
  EXPECT_GE(times.busy_s, 4 * 0.020);
  EXPECT_GE(times.idle_s, 4 * 0.005);
  EXPECT_LT(times.busy_s + times.idle_s, seconds_since(start) + 0.005) << "nothing is counted twice";
  clock.mark_step_start();  // a step that is no replay
  idle(50);
  step();
  clock.mark_idle();
  idle(50);
  step();
  EXPECT_EQ(clock.take_times().idle_s, 0);
}

// What cannot be recorded is an error, and the stream is usable afterwards.
TEST(StepGraph, RefusesToWaitOrAllocate) {
  const Stream stream;
  cuda::ReplayClock clock(stream);
  Event event;
  const std::vector<std::function<void()>> bad{
      [&] { stream.wait(); },
      [&] { event.wait(); },
      [&] { event.record(stream); },
      [] { allocate_device(16, "a test"); },
      [] { allocate_pinned(16, "a test"); },
      [] { throw std::runtime_error("an op failed"); },
  };
  for (const auto& ops : bad) {
    EXPECT_ANY_THROW(cuda::StepGraph(stream, clock, ops));
    EXPECT_EQ(clock.recording(), nullptr);
    int sum = 0;
    launch_add(stream, &sum, 1);
    stream.wait();
    EXPECT_EQ(sum, 1);
  }
}

}  // namespace
}  // namespace ptrt
