// That emulated streams and graphs keep to what CUDA promises and no more; recorded steps on top of them.
#include "cuda_emulation/stream.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/step_graph.h"
#include "kernels/error.h"

namespace ptrt {
namespace {

void add_kernel(int* to, int value) {
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
  const cuda::StepGraph graph(stream, ops);
  stream.wait();
  EXPECT_EQ(sum, 0) << "recording runs nothing";
  value = 100;
  for (int i = 0; i < 3; ++i) graph.launch(stream);
  stream.wait();
  EXPECT_EQ(sum, 3);
  EXPECT_EQ(calls, 1);
}

TEST(StepGraph, RecordsAKeyTheSecondTime) {
  const Stream stream;
  cuda::StepGraphs graphs;
  int sum = 0, calls = 0;
  const auto ops = [&] {
    ++calls;
    launch_add(stream, &sum, 1);
  };
  for (const bool called : {true, true, false, false}) EXPECT_EQ(graphs.run({8, 1}, stream, ops), called);
  EXPECT_TRUE(graphs.run({8, 2}, stream, ops)) << "another key";
  stream.wait();
  EXPECT_EQ(sum, 5);
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(graphs.recorded(), 1u);
}

// What does not go with recording is an error, and the stream is usable again.
TEST(StepGraph, RefusesToWaitOrAllocate) {
  const Stream stream;
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
    EXPECT_ANY_THROW(cuda::StepGraph(stream, ops));
    int sum = 0;
    launch_add(stream, &sum, 1);
    stream.wait();
    EXPECT_EQ(sum, 1);
  }
}

}  // namespace
}  // namespace ptrt
