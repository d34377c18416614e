// The fusion over ranks that are threads: the same bits for every placement, right against float64,
// and diverged ranks are caught.
#include "runtime/sync/fusion.h"

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>

#include "kernels/base/error.h"
#include "kernels/make_cpu_backend.h"
#include "runtime/sync/host_all_reduce.h"
#include "thread_comm.h"

namespace ptrt {
namespace {

struct Streams {
  std::int64_t tracks, rows, width;
  std::vector<float> x, y;  // [rows, width], [tracks, rows, width]
};

Streams random_streams(std::int64_t tracks, std::int64_t rows, std::int64_t width) {
  std::mt19937 random(static_cast<unsigned>(tracks * 1000 + rows));
  std::normal_distribution<float> normal;
  Streams s{tracks, rows, width, {}, {}};
  s.x.resize(static_cast<std::size_t>(rows * width));
  s.y.resize(static_cast<std::size_t>(tracks * rows * width));
  for (float& v : s.x) v = normal(random);
  for (float& v : s.y)
    v = normal(random) * std::exp(2 * normal(random));  // sizes that make the order of sums show
  return s;
}

// x = fuse(x, y).
void fuse(Fusion& fusion, Tensor x, Tensor y) {
  BlockInput input = fusion.exchange(x, {.y = y, .minus = {}});
  fusion.finish(input, x);
}

ModelConfig config_for(const Streams& s, FusionOp op) {
  ModelConfig config;
  config.tracks = s.tracks;
  config.hidden_size = s.width;
  config.fusion.op = op;
  return config;
}

// Fuses over `ranks` ranks; every rank's x must have the same bits.
std::vector<float> fuse_over(int ranks, const Streams& s, FusionOp op, SyncStats* stats = nullptr) {
  const ModelConfig config = config_for(s, op);
  std::vector<std::vector<float>> results(static_cast<std::size_t>(ranks), s.x);
  ThreadCommGroup(ranks).run([&](TrackComm& comm) {
    const Placement placement = make_placement(ranks, comm.rank(), s.tracks);
    const auto backend = make_cpu_backend({.threads = 1});
    StepState state;
    Fusion fusion(comm, *backend, state, config, placement, s.rows);
    const std::int64_t track = s.rows * s.width;
    std::vector<float> y(s.y.begin() + placement.first_track * track,
                         s.y.begin() + (placement.first_track + placement.tracks) * track);
    auto& x = results[static_cast<std::size_t>(comm.rank())];
    state.header = {7, 42};
    fuse(fusion, {x.data(), 1, s.rows, s.width, track}, {y.data(), placement.tracks, s.rows, s.width, track});
    if (comm.rank() == 0 && stats != nullptr) *stats = fusion.stats();
  });
  for (const auto& x : results)
    EXPECT_EQ(0, std::memcmp(x.data(), results[0].data(), x.size() * sizeof(float)));
  return results[0];
}

void expect_right(const std::vector<float>& fused, const Streams& s, FusionOp op) {
  for (std::size_t i = 0; i < s.x.size(); i++) {
    double sum = 0, size = 0;
    for (std::int64_t t = 0; t < s.tracks; t++) {
      const double y = s.y[static_cast<std::size_t>(t) * s.x.size() + i];
      sum += op == FusionOp::delta_sum ? y - s.x[i] : y;
      size += std::abs(y) + std::abs(s.x[i]);
    }
    if (op == FusionOp::mean) sum /= static_cast<double>(s.tracks);
    if (op == FusionOp::delta_sum) sum += s.x[i];
    ASSERT_NEAR(fused[i], sum, 1e-6 * size + 1e-6);
  }
}

TEST(Fusion, SameBitsOnEveryPlacement) {
  for (const FusionOp op : {FusionOp::mean, FusionOp::sum, FusionOp::delta_sum})
    for (const std::int64_t tracks : {1, 2, 3, 5, 6, 8, 12})
      for (const std::int64_t rows : {1, 7}) {
        const Streams s = random_streams(tracks, rows, 37);
        const auto alone = fuse_over(1, s, op);
        expect_right(alone, s, op);
        for (const std::int64_t ranks : packed_sizes(tracks))
          ASSERT_EQ(alone, fuse_over(static_cast<int>(ranks), s, op))
              << tracks << " tracks, " << ranks << " ranks";
      }
}

// Outputs that the block's end subtracted x from, and outputs that the exchange subtracts it from.
TEST(Fusion, DeltaIsSubtractedOnce) {
  const Streams s = random_streams(4, 7, 37);
  const auto expected = fuse_over(1, s, FusionOp::delta_sum);
  const ModelConfig config = config_for(s, FusionOp::delta_sum);
  const auto backend = make_cpu_backend({.threads = 1});
  const auto comm = make_solo_track_comm();
  StepState state;
  Fusion fusion(*comm, *backend, state, config, make_placement(1, 0, 4), s.rows);
  std::vector<float> x = s.x, h = s.y;
  const Tensor stream{x.data(), 1, s.rows, s.width, s.rows * s.width};
  const Tensor tracks{h.data(), 4, s.rows, s.width, s.rows * s.width};
  EXPECT_EQ(fusion.output(stream, tracks.first_rows(2)).minus.data, nullptr) << "the block drops rows";
  const BlockOutput output = fusion.output(stream, tracks);
  EXPECT_EQ(output.minus.data, x.data());
  backend->subtract(output.minus.broadcast(4), output.y);
  BlockInput input = fusion.exchange(stream, output);
  fusion.finish(input, stream);
  EXPECT_EQ(x, expected);
}

TEST(Fusion, TwoShotSumsKeepTheBits) {
  // More rows than the two-shot threshold; sizes that are no multiples of the ranks.
  for (const std::int64_t tracks : {6, 8}) {
    const Streams s = random_streams(tracks, 331, 131);
    const auto alone = fuse_over(1, s, FusionOp::delta_sum);
    expect_right(alone, s, FusionOp::delta_sum);
    for (const std::int64_t ranks : packed_sizes(tracks)) {
      SyncStats stats;
      ASSERT_EQ(alone, fuse_over(static_cast<int>(ranks), s, FusionOp::delta_sum, &stats));
      if (ranks != 8) continue;
      // In two shots a rank sends about one part in all, not one to each of the other seven ranks.
      EXPECT_LT(stats.bytes_sent, 3u * 331 * 131 * sizeof(float));
      EXPECT_GT(stats.bytes_sent, 331u * 131 * sizeof(float));
    }
  }
}

TEST(Fusion, CountsSyncPointsAlsoInsideOneRank) {
  SyncStats stats;
  fuse_over(1, random_streams(8, 2, 8), FusionOp::mean, &stats);
  EXPECT_EQ(stats.sync_points, 1u);
  EXPECT_EQ(stats.bytes_sent, 0u);
  fuse_over(1, random_streams(1, 2, 8), FusionOp::mean, &stats);
  EXPECT_EQ(stats.sync_points, 0u) << "a dense model has no sync points";
}

TEST(Fusion, DivergedRanksAreCaught) {
  const Streams s = random_streams(4, 1, 8);
  const ModelConfig config = config_for(s, FusionOp::mean);
  std::atomic<int> caught{0};
  ThreadCommGroup(4).run([&](TrackComm& comm) {
    const auto backend = make_cpu_backend({.threads = 1});
    StepState state;
    Fusion fusion(comm, *backend, state, config, make_placement(4, comm.rank(), 4), 1);
    std::vector<float> x = s.x, y = s.x;
    state.header = {7, comm.rank() == 2 ? 43u : 42u};
    try {
      fuse(fusion, {x.data(), 1, 1, 8, 8}, {y.data(), 1, 1, 8, 8});
    } catch (const Error& error) {
      caught++;
      EXPECT_NE(std::string(error.what()).find("diverged"), std::string::npos);
    }
  });
  EXPECT_EQ(caught, 4);
}

TEST(Fusion, TheFirstRankDecidesTheFlags) {
  const Streams s = random_streams(2, 1, 8);
  const ModelConfig config = config_for(s, FusionOp::mean);
  for (const int asking : {0, 1})
    ThreadCommGroup(2).run([&](TrackComm& comm) {
      const auto backend = make_cpu_backend({.threads = 1});
      StepState state;
      Fusion fusion(comm, *backend, state, config, make_placement(2, comm.rank(), 2), 1);
      std::vector<float> x = s.x, y = s.x;
      state.header.flags = comm.rank() == asking ? kStopFlag : 0;
      fuse(fusion, {x.data(), 1, 1, 8, 8}, {y.data(), 1, 1, 8, 8});
      EXPECT_EQ(state.header.flags, asking == 0 ? kStopFlag : 0u);
    });
}

// On one host; each on its own; and, where hosts can have equally many, in groups of neighbours and in turns.
std::vector<std::vector<int>> layouts(int ranks) {
  std::vector<std::vector<int>> found(2);
  for (int r = 0; r < ranks; r++) {
    found[0].push_back(0);
    found[1].push_back(r);
  }
  for (int hosts = 2; hosts < ranks; hosts++) {
    if (ranks % hosts != 0) continue;
    std::vector<int> neighbours, turns;
    for (int r = 0; r < ranks; r++) {
      neighbours.push_back(r / (ranks / hosts) * (ranks / hosts));
      turns.push_back(r % hosts);
    }
    found.push_back(neighbours);
    found.push_back(turns);
  }
  return found;
}

// Every algorithm over every number of ranks, against the tree on one rank: sizes below a vector,
// with empty slices, and beyond a piece of shared memory. Two sums in a row: the first is added to
// its output, the second overwrites its own part.
TEST(AllReduce, EveryAlgorithmGivesTheSameBits) {
  std::array<std::atomic<int>, std::size(kAllReduceAlgorithms)> sums{};  // by algorithm
  for (const int ranks : {2, 3, 4, 5, 6, 8})
    for (const std::int64_t parts : {1, 3})
      for (const std::int64_t count : {1, 3, 4097, 300001}) {
        if (count > 5000 && ((parts > 1) != (ranks == 3) || ranks > 4)) continue;  // large ones take long
        const Streams s = random_streams(ranks * parts, 1, count);
        const auto part = [&](std::int64_t p) { return s.y.data() + p * count; };
        std::vector<const float*> all;
        for (std::int64_t p = 0; p < ranks * parts; p++) all.push_back(part(p));
        std::vector<float> plain(s.x.size()), added(s.x.size());
        const auto reference = make_cpu_backend({.threads = 1});
        reference->tree_sum(all, count, 0.5f, nullptr, plain.data());
        reference->tree_sum(all, count, 1.0f, s.x.data(), added.data());
        for (const std::vector<int>& hosts : layouts(ranks))
          for (const AllReduceAlgorithm algorithm : kAllReduceAlgorithms) {
            SCOPED_TRACE(fmt::format("{}: {} ranks on {}, {} parts, {} values", to_string(algorithm), ranks,
                                     fmt::join(hosts, " "), parts, count));
            ThreadCommGroup(hosts).run([&](TrackComm& comm) {
              const auto backend = make_cpu_backend({.threads = 1});
              StepState state;
              HostAllReduce all_reduce(comm, *backend, state, parts, count, algorithm);
              ASSERT_EQ(all_reduce.shares_memory(), hosts.back() == 0);
              if (!all_reduce.offers(algorithm)) return;
              sums[static_cast<std::size_t>(algorithm)]++;
              std::vector<float> mine(part(comm.rank() * parts), part((comm.rank() + 1) * parts));
              std::vector<const float*> local;
              for (std::int64_t p = 0; p < parts; p++) local.push_back(mine.data() + p * count);
              std::vector<float> out = s.x;
              all_reduce.sum(local, count, 1.0f, out.data(), out.data());
              EXPECT_EQ(out, added);
              all_reduce.sum(local, count, 0.5f, nullptr, mine.data());
              EXPECT_EQ(0, std::memcmp(mine.data(), plain.data(), plain.size() * sizeof(float)));
              EXPECT_EQ(all_reduce.stats().sync_points, 2u);
              EXPECT_GT(all_reduce.stats().bytes_sent, 0u);
            });
          }
      }
  for (const std::atomic<int>& count : sums) EXPECT_GT(count, 20) << "every algorithm ran";
}

// The two halves of the shared memory are used in turns: ranks that run ahead of others must not
// overwrite what those still read.
TEST(AllReduce, ManySumsInSharedMemory) {
  for (const AllReduceAlgorithm algorithm :
       {AllReduceAlgorithm::shm_one_shot, AllReduceAlgorithm::shm_two_shot})
    ThreadCommGroup(4).run([&](TrackComm& comm) {
      const auto backend = make_cpu_backend({.threads = 1});
      StepState state;
      HostAllReduce all_reduce(comm, *backend, state, 1, 64, algorithm);
      for (int turn = 0; turn < 2000; turn++) {
        std::vector<float> values(static_cast<std::size_t>(1 + turn % 64),
                                  static_cast<float>(turn * (comm.rank() + 1)));
        const float* part[] = {values.data()};
        all_reduce.sum(part, std::ssize(values), 1.0f, nullptr, values.data());
        ASSERT_EQ(values, std::vector<float>(values.size(), static_cast<float>(10 * turn)));
      }
    });
}

TEST(AllReduce, SixtyFourRanksOfOneHost) {
  constexpr int kRanks = 64;
  ThreadCommGroup(kRanks).run([&](TrackComm& comm) {
    const auto backend = make_cpu_backend({.threads = 1});
    StepState state;
    HostAllReduce all_reduce(comm, *backend, state, 1, 10000);
    ASSERT_TRUE(all_reduce.shares_memory());
    for (const std::size_t count : {1, 40, 10000})  // in one shot, with empty slices in two, in two
      for (int turn = 0; turn < 4; turn++) {
        std::vector<float> values(count, static_cast<float>(turn + comm.rank()));
        const float* part[] = {values.data()};
        if (count == 40) all_reduce.set_algorithm(AllReduceAlgorithm::shm_two_shot);
        all_reduce.sum(part, std::ssize(values), 1.0f, nullptr, values.data());
        ASSERT_EQ(values, std::vector<float>(count, static_cast<float>(kRanks * turn + 63 * kRanks / 2)));
      }
  });
}

// A different token is detected, and the first rank's flags are adopted, with every algorithm.
TEST(AllReduce, HeadersTravelWithEveryAlgorithm) {
  for (const AllReduceAlgorithm algorithm :
       {AllReduceAlgorithm::one_shot, AllReduceAlgorithm::two_shot, AllReduceAlgorithm::shm_two_shot})
    ThreadCommGroup(3, algorithm == AllReduceAlgorithm::shm_two_shot).run([&](TrackComm& comm) {
      const auto backend = make_cpu_backend({.threads = 1});
      StepState state;
      HostAllReduce all_reduce(comm, *backend, state, 1, 8, algorithm);
      std::vector<float> values(8, 1);
      const float* part[] = {values.data()};
      state.header = {1, 5, 0, comm.rank() == 0 ? kStopFlag : 0, 0};
      all_reduce.sum(part, 8, 1.0f, nullptr, values.data());
      EXPECT_EQ(state.header.flags, kStopFlag);
      state.header.digest = comm.rank() == 2 ? 6 : 5;
      EXPECT_THROW(all_reduce.sum(part, 8, 1.0f, nullptr, values.data()), Error);
    });
  // With `root` only the first rank receives from all; the others receive the sum.
  ThreadCommGroup(3, false).run([](TrackComm& comm) {
    const auto backend = make_cpu_backend({.threads = 1});
    StepState state;
    HostAllReduce all_reduce(comm, *backend, state, 1, 8, AllReduceAlgorithm::root);
    std::vector<float> values(8, 1);
    const float* part[] = {values.data()};
    state.header = {1, 5, 0, comm.rank() == 0 ? kStopFlag : 0, 0};
    all_reduce.sum(part, 8, 1.0f, nullptr, values.data());
    EXPECT_EQ(state.header.flags, kStopFlag);
  });
}

// One rank is late: the others wait for it and count that; the late rank waits for none.
TEST(AllReduce, DistinguishesWaitingFromMoving) {
  using namespace std::chrono_literals;
  constexpr int kLate = 1;
  ThreadCommGroup(3).run([&](TrackComm& comm) {
    const auto backend = make_cpu_backend({.threads = 1});
    StepState state;
    HostAllReduce all_reduce(comm, *backend, state, 1, 4);
    if (comm.rank() == kLate) std::this_thread::sleep_for(400ms);
    std::vector<float> values(4, static_cast<float>(comm.rank()));
    const float* part[] = {values.data()};
    all_reduce.sum(part, 4, 1.0f, nullptr, values.data());
    EXPECT_EQ(values, std::vector<float>(4, 3.0f));
    const SyncStats& stats = all_reduce.stats();
    EXPECT_LE(stats.wait_seconds, stats.seconds);
    if (comm.rank() == kLate)
      EXPECT_LT(stats.wait_seconds, 0.2);
    else
      EXPECT_GT(stats.wait_seconds, 0.2);
  });
}

}  // namespace
}  // namespace ptrt
