#include "runtime/job/placement.h"

#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

struct Case {
  std::int64_t world, tracks, replicas;             // given; replicas 0 = not given
  std::int64_t expected_replicas, tracks_per_rank;  // 0 = must be refused
};

class PlacementTable : public ::testing::TestWithParam<Case> {};

TEST_P(PlacementTable, EveryTrackOnceAReplica) {
  const Case c = GetParam();
  if (c.expected_replicas == 0) {
    EXPECT_THROW(make_placement(c.world, 0, c.tracks, {c.replicas, 1}), Error);
    return;
  }
  std::set<std::pair<std::int64_t, std::int64_t>> held;  // (replica, track)
  for (std::int64_t rank = 0; rank < c.world; rank++) {
    const Placement p = make_placement(c.world, rank, c.tracks, {c.replicas, 1});
    EXPECT_EQ(p.replicas, c.expected_replicas);
    EXPECT_EQ(p.tracks, c.tracks_per_rank);
    EXPECT_EQ(p.replica * p.replica_ranks + p.replica_rank, rank);
    EXPECT_EQ(p.first_track, p.replica_rank * p.tracks);
    for (std::int64_t t = 0; t < p.tracks; t++)
      EXPECT_TRUE(held.insert({p.replica, p.first_track + t}).second);
  }
  EXPECT_EQ(static_cast<std::int64_t>(held.size()), c.expected_replicas * c.tracks);
}

INSTANTIATE_TEST_SUITE_P(Sizes, PlacementTable,
                         ::testing::Values(Case{1, 8, 0, 1, 8}, Case{2, 8, 0, 1, 4}, Case{8, 8, 0, 1, 1},
                                           Case{16, 8, 0, 2, 1}, Case{24, 8, 0, 3, 1}, Case{3, 8, 0, 0, 0},
                                           Case{12, 8, 0, 0, 0}, Case{4, 8, 2, 2, 4}, Case{2, 8, 2, 2, 8},
                                           Case{16, 8, 2, 2, 1}, Case{16, 8, 4, 4, 2}, Case{8, 8, 3, 0, 0},
                                           Case{32, 8, 2, 0, 0}, Case{3, 6, 0, 1, 2}, Case{5, 5, 0, 1, 1},
                                           Case{4, 1, 0, 4, 1}, Case{1, 1, 0, 1, 1}, Case{6, 8, 3, 3, 4}));

TEST(Placement, TheMessageSaysWhichSizesFit) {
  try {
    make_placement(3, 0, 8);
    FAIL() << "3 ranks do not fit 8 tracks";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input);
    EXPECT_NE(std::string(error.what()).find("1, 2, 4, 8"), std::string::npos) << error.what();
  }
}

// With K ranks a track: every part of every track once a replica, parts of a track on neighbours.
TEST(Placement, SharesTracks) {
  struct Shared {
    std::int64_t world, tracks, replicas, split, expected_replicas, tracks_per_rank;
  };
  for (const Shared& c : {Shared{2, 1, 0, 2, 1, 1}, Shared{4, 2, 0, 2, 1, 1}, Shared{8, 2, 0, 2, 2, 1},
                          Shared{2, 2, 0, 2, 1, 2}, Shared{8, 4, 2, 2, 2, 2}, Shared{8, 1, 0, 4, 2, 1}}) {
    std::set<std::tuple<std::int64_t, std::int64_t, std::int64_t>> held;  // (replica, track, part)
    for (std::int64_t rank = 0; rank < c.world; rank++) {
      const Placement p = make_placement(c.world, rank, c.tracks, {c.replicas, c.split});
      EXPECT_EQ(p.replicas, c.expected_replicas);
      EXPECT_EQ(p.tracks, c.tracks_per_rank);
      EXPECT_EQ(p.tensor_rank, rank % c.split);
      EXPECT_EQ(p.fusion_rank() * c.split + p.tensor_rank, p.replica_rank);
      for (std::int64_t t = 0; t < p.tracks; t++)
        EXPECT_TRUE(held.insert({p.replica, p.first_track + t, p.tensor_rank}).second);
    }
    EXPECT_EQ(std::ssize(held), c.expected_replicas * c.tracks * c.split);
  }
  for (const Shared& c : {Shared{2, 1, 0, 0, 0, 0}, Shared{1, 1, 0, 2, 0, 0}, Shared{3, 1, 0, 2, 0, 0},
                          Shared{6, 2, 0, 2, 0, 0}, Shared{4, 2, 4, 2, 0, 0}})
    EXPECT_THROW(make_placement(c.world, 0, c.tracks, {c.replicas, c.split}), Error);
}

}  // namespace
}  // namespace ptrt
