#include "runtime/placement.h"

#include <gtest/gtest.h>

#include <set>

#include "kernels/error.h"

namespace ptrt {
namespace {

struct Case {
  std::int64_t world, tracks, replicas;             // given; replicas 0 = not given
  std::int64_t expected_replicas, tracks_per_rank;  // 0 = must be refused
};

class PlacementTable : public testing::TestWithParam<Case> {};

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
                         testing::Values(Case{1, 8, 0, 1, 8}, Case{2, 8, 0, 1, 4}, Case{8, 8, 0, 1, 1},
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

TEST(Placement, RefusesTensorParallel) {
  EXPECT_THROW(make_placement(2, 0, 1, {0, 2}), Error);
}

}  // namespace
}  // namespace ptrt
