// All-reduce between ranks with an emulated device each: every kind against the host's tree, what
// is counted, and that the watchdog ends ranks whose peer stays away.
#include "runtime/sync/device_all_reduce.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <future>
#include <latch>
#include <random>

#include "cuda_emulation/nccl_host.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/make_cpu_backend.h"
#include "runtime/comm/emulated_comm.h"
#include "runtime/sync/host_all_reduce.h"
#include "thread_comm.h"

namespace ptrt {
namespace {

struct Values {
  std::int64_t ranks, parts, count;
  std::vector<float> parts_of_all;  // [ranks, parts, count]
  std::vector<float> stream;        // [count], added last

  const float* part(std::int64_t rank, std::int64_t p) const {
    return parts_of_all.data() + (rank * parts + p) * count;
  }
};

Values random_values(std::int64_t ranks, std::int64_t parts, std::int64_t count) {
  std::mt19937 random(static_cast<unsigned>(100 * ranks + parts));
  std::normal_distribution<float> normal;
  Values v{ranks, parts, count, {}, {}};
  v.parts_of_all.resize(static_cast<std::size_t>(ranks * parts * count));
  v.stream.resize(static_cast<std::size_t>(count));
  for (float& x : v.parts_of_all) x = normal(random) * std::exp(2 * normal(random));
  for (float& x : v.stream) x = normal(random);
  return v;
}

constexpr float kScale = 0.375f;

std::vector<float> host_sum(const Values& v, bool add) {
  const auto backend = make_cpu_backend({.threads = 1});
  std::vector<const float*> parts;
  for (std::int64_t r = 0; r < v.ranks; r++)
    for (std::int64_t p = 0; p < v.parts; p++) parts.push_back(v.part(r, p));
  std::vector<float> out(static_cast<std::size_t>(v.count));
  backend->tree_sum(parts, v.count, kScale, add ? v.stream.data() : nullptr, out.data());
  return out;
}

class OnDevice {
 public:
  OnDevice(Backend& backend, std::span<const float> values) : backend_(backend), count_(values.size()) {
    memory_ = backend.allocate(values.size_bytes(), "a test");
    backend.write(std::as_bytes(values), memory_.get());
  }
  float* data() const { return reinterpret_cast<float*>(memory_.get()); }
  std::vector<float> get() const {
    std::vector<float> values(count_);
    backend_.read_back(memory_.get(), std::as_writable_bytes(std::span(values)));
    return values;
  }

 private:
  Backend& backend_;
  std::size_t count_;
  std::shared_ptr<std::byte[]> memory_;
};

// Two sums of one step over ranks that are threads; the results of all ranks must be equal.
std::vector<float> device_sum(const Values& v, DeviceFusion kind, bool add, SyncStats* stats = nullptr) {
  std::vector<std::vector<float>> results(static_cast<std::size_t>(v.ranks));
  ThreadCommGroup(static_cast<int>(v.ranks)).run([&](TrackComm& comm) {
    CudaBackend backend("host emulation");
    StepState state;
    const auto all_reduce =
        make_all_reduce(comm, backend, state, v.parts, v.count + 3, {.device_fusion = kind});
    EXPECT_EQ(all_reduce->recordable(), kind != DeviceFusion::staged);
    const std::int64_t rank = comm.rank();
    std::vector<OnDevice> parts;
    std::vector<const float*> pointers;
    for (std::int64_t p = 0; p < v.parts; p++) {
      parts.emplace_back(backend, std::span(v.part(rank, p), static_cast<std::size_t>(v.count)));
      pointers.push_back(parts.back().data());
    }
    state.header = {3, 99};
    all_reduce->start_step();
    const OnDevice other(backend, v.stream), out(backend, v.stream);
    all_reduce->sum(pointers, v.count, 1.0f, nullptr, other.data());
    all_reduce->sum(pointers, v.count, kScale, add ? out.data() : nullptr, out.data());
    all_reduce->settle();
    results[static_cast<std::size_t>(rank)] = out.get();
    if (rank == 0 && stats != nullptr) *stats = all_reduce->stats();
  });
  for (const auto& result : results) EXPECT_EQ(result, results[0]);
  return results[0];
}

TEST(DeviceAllReduce, TreeAndStagedHaveTheBitsOfTheHost) {
  for (const std::int64_t ranks : {2, 3, 8})
    for (const std::int64_t parts : {1, 3})
      for (const bool add : {false, true}) {
        const Values v = random_values(ranks, parts, 301);
        const auto expected = host_sum(v, add);
        for (const DeviceFusion kind : {DeviceFusion::tree, DeviceFusion::staged, DeviceFusion::automatic})
          EXPECT_EQ(device_sum(v, kind, add), expected)
              << ranks << " ranks, " << parts << " parts, kind " << static_cast<int>(kind);
      }
}

TEST(DeviceAllReduce, AllReduceIsClose) {
  const Values v = random_values(8, 3, 301);
  const auto expected = host_sum(v, true), summed = device_sum(v, DeviceFusion::nccl, true);
  EXPECT_NE(summed, expected) << "another order of additions would show";
  for (std::size_t i = 0; i < expected.size(); i++) {
    float size = 1;
    for (std::int64_t p = 0; p < 24; p++) size += std::abs(v.part(p / 3, p % 3)[i]);
    ASSERT_NEAR(summed[i], expected[i], 1e-6 * size);
  }
}

TEST(DeviceAllReduce, CountsPointsBytesAndTime) {
  const Values v = random_values(4, 2, 100);
  SyncStats stats;
  const std::uint64_t header = 3 * sizeof(StepHeader), part = 100 * sizeof(float);
  device_sum(v, DeviceFusion::tree, false, &stats);
  EXPECT_EQ(stats.sync_points, 2u);
  EXPECT_EQ(stats.bytes_sent, header + 2 * (2 * part * 3));
  EXPECT_GT(stats.seconds, 0);
  device_sum(v, DeviceFusion::nccl, false, &stats);
  EXPECT_EQ(stats.bytes_sent, header + 2 * (2 * part * 3 / 4));
  device_sum(v, DeviceFusion::staged, false, &stats);
  EXPECT_EQ(stats.sync_points, 2u);
  EXPECT_EQ(stats.bytes_sent, 2 * (sizeof(StepHeader) + 2 * part)) << "hosts that share memory write once";
  EXPECT_LE(stats.wait_seconds, stats.seconds);
}

// A large sum uses the library's all-reduce.
TEST(DeviceAllReduce, AutomaticChoosesBySize) {
  const Values v = random_values(2, 1, DeviceAllReduce::kTreeBytes / 8 + 1);
  SyncStats stats;
  device_sum(v, DeviceFusion::automatic, false, &stats);
  const std::uint64_t part = static_cast<std::uint64_t>(v.count) * sizeof(float);
  EXPECT_EQ(stats.bytes_sent, sizeof(StepHeader) + 2 * (2 * part / 2));
}

TEST(DeviceAllReduce, DivergedRanksAreCaught) {
  std::atomic<int> caught{0};
  ThreadCommGroup(3).run([&](TrackComm& comm) {
    CudaBackend backend("host emulation");
    StepState state;
    const auto all_reduce =
        make_all_reduce(comm, backend, state, 1, 4, {.device_fusion = DeviceFusion::tree});
    state.header = {7, comm.rank() == 2 ? 43u : 42u, 0, comm.rank() == 0 ? kStopFlag : 0};
    try {
      all_reduce->start_step();
    } catch (const Error& error) {
      caught++;
      EXPECT_NE(std::string(error.what()).find("diverged"), std::string::npos);
    }
    state.header = {8, 42, 0, comm.rank() == 0 ? kStopFlag : 0};
    all_reduce->start_step();
    EXPECT_EQ(state.header.flags, kStopFlag) << "every rank adopts the first rank's flags";
  });
  EXPECT_EQ(caught, 3);
}

// What the watchdog of rank 0 reports when rank 1 joins the group and then does not call sum().
std::string report_of_absent_peer(double timeout_s, const std::string& device_failure) {
  ThreadCommGroup group(2);
  std::promise<std::string> report;
  std::latch over(1);
  Watchdog watchdog({.step_timeout_s = timeout_s}, [&](const std::string& what, const auto& abort_groups) {
    report.set_value(what);
    abort_groups();
  });
  group.run([&](TrackComm& comm) {
    CudaBackend backend("host emulation");
    StepState state;
    const bool absent = comm.rank() == 1;
    const auto all_reduce =
        make_all_reduce(comm, backend, state, 1, 4,
                        {.device_fusion = DeviceFusion::tree, .watchdog = absent ? nullptr : &watchdog});
    all_reduce->start_step();
    if (absent) return over.wait();
    watchdog.start();
    watchdog.step_begins();
    emulation::set_collective_failure(device_failure);
    const OnDevice values(backend, std::vector<float>(4, 1.0f));
    const float* part[] = {values.data()};
    all_reduce->sum(part, 4, 1.0f, nullptr, values.data());
    EXPECT_THROW(values.get(), Error);
    over.count_down();
  });
  emulation::set_collective_failure("");
  return report.get_future().get();
}

TEST(DeviceAllReduce, APeerThatHangsEndsInAnError) {
  const std::string what = report_of_absent_peer(0.3, "");
  EXPECT_NE(what.find("step 1: stuck for"), std::string::npos) << what;
}

TEST(DeviceAllReduce, APeerThatDiesEndsInAnError) {
  const std::string what = report_of_absent_peer(0, "NCCL: remote process exited");
  EXPECT_EQ(what, "in step 1: NCCL: remote process exited");
}

// Each collective takes the link's time on the device; so does the host's message.
TEST(DeviceAllReduce, EmulatedRanksTakeTheLinksTime) {
  constexpr LinkModel kLink{.latency_us = 20000, .gb_per_s = 0.001};
  EXPECT_NEAR(kLink.gather_seconds(1000, 8), 0.020 + 0.007, 1e-9);
  EXPECT_NEAR(kLink.reduce_seconds(1000, 8), 0.020 + 0.00175, 1e-9);
  const auto comm = make_emulated_comm(8, kLink);
  CudaBackend backend("host emulation");
  StepState state;
  const auto all_reduce = make_all_reduce(*comm, backend, state, 1, 250,
                                          {.device_fusion = DeviceFusion::tree, .emulated = kLink});
  all_reduce->start_step();
  const OnDevice values(backend, std::vector<float>(250, 1.0f));
  const float* part[] = {values.data()};
  all_reduce->sum(part, 250, 1.0f, nullptr, values.data());
  all_reduce->settle();
  EXPECT_GE(all_reduce->stats().seconds, 0.027);
  EXPECT_LT(all_reduce->stats().seconds, 1.0);
  EXPECT_EQ(values.get(), std::vector<float>(250, 1.0f)) << "the absent ranks bring zeros";
  EXPECT_EQ(all_reduce->describe().find("EMULATED"), 0u);
}

}  // namespace
}  // namespace ptrt
