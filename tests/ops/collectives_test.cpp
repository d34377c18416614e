// Groups of devices, as far as one device can show them: a group of one rank, emulated ranks, time by events.
#include <chrono>

#include "ops/fixtures/op_fixture.h"

namespace ptrt::testing {
namespace {

class DeviceCollectives : public OpTest {
 protected:
  DeviceGroups& groups() { return *backend().device_groups(); }
};
INSTANTIATE_TEST_SUITE_P(On, DeviceCollectives, ::testing::Values(kCuda), param_name);

constexpr std::size_t kCount = 1000;

std::vector<float> read(Backend& backend, const float* from) {
  std::vector<float> values(kCount);
  backend.read_back(reinterpret_cast<const std::byte*>(from), std::as_writable_bytes(std::span(values)));
  return values;
}

TEST_P(DeviceCollectives, AGroupOfOne) {
  if (const std::string missing = groups().missing(); !missing.empty()) GTEST_SKIP() << missing;
  Random random(1);
  const Array values(backend(), 1, 1, kCount, DType::float32, random);
  const auto group = groups().join(groups().make_id(), 0, 1);
  EXPECT_EQ(group->size(), 1);
  EXPECT_EQ(group->rank(), 0);
  EXPECT_FALSE(group->describe().empty());
  float* const send = group->allocate(kCount, "a test");
  float* const recv = group->allocate(kCount, "a test");
  EXPECT_EQ(read(backend(), recv), std::vector<float>(kCount)) << "zeroed";
  const float* part[] = {values.tensor.row(0, 0)};
  backend().tree_sum(part, kCount, 1.0f, nullptr, send);
  group->all_gather(send, recv, kCount);
  EXPECT_EQ(read(backend(), recv), values.host.values);
  backend().tree_sum(part, kCount, 2.0f, nullptr, send);
  group->all_reduce(send, recv, kCount);
  const auto doubled = read(backend(), recv);
  for (std::size_t i = 0; i < kCount; ++i) ASSERT_EQ(doubled[i], 2 * values.host.values[i]);
  EXPECT_EQ(group->failure(), "");
  group->abort();
  EXPECT_EQ(group->failure(), "") << "nothing is asked of a group that has ended";
}

TEST_P(DeviceCollectives, EmulatedRanksTakeTheLinksTime) {
  constexpr LinkModel kLink{.latency_us = 3000, .gb_per_s = 0.01};
  const auto group = groups().emulate(8, kLink);
  float* const send = group->allocate(kCount, "a test");
  float* const recv = group->allocate(8 * kCount, "a test");
  const auto timer = groups().make_timer();
  double expected = 0;
  for (int i = 0; i < 5; ++i) {
    timer->begin();
    group->all_gather(send, recv, kCount);
    timer->end();
    expected += kLink.gather_seconds(kCount * sizeof(float), 8);
    timer->begin();
    group->all_reduce(send, recv, kCount);
    timer->end();
    expected += kLink.reduce_seconds(kCount * sizeof(float), 8);
  }
  // The device's clock ticks once in up to a microsecond.
  const double taken = timer->take_seconds(false) + timer->take_seconds(true);
  EXPECT_GE(taken, expected - 20e-6);
  EXPECT_LT(taken, 5 * expected);
  EXPECT_EQ(timer->take_seconds(true), 0) << "taken already";
}

TEST_P(DeviceCollectives, MemoryOfTheHost) {
  Random random(2);
  const Array values(backend(), 1, 1, kCount, DType::float32, random);
  const auto host = groups().allocate_host(kCount * sizeof(float), "a test");
  const std::span<std::byte> bytes(host.get(), kCount * sizeof(float));
  backend().read_back(static_cast<const std::byte*>(values.tensor.data), bytes);
  EXPECT_EQ(0, std::memcmp(host.get(), values.host.values.data(), bytes.size()));
  groups().wait();
}

}  // namespace
}  // namespace ptrt::testing
