#include "runtime/sync/sync_schedule.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace ptrt
