// A rank opens and reads its own track and the shared part, nothing else.
#include <gtest/gtest.h>

#include <fstream>
#include <memory>

#include "kernels/make_cpu_backend.h"
#include "model_fixture.h"
#include "model_io/file/model_file.h"
#include "model_io/shard/track_shard.h"

namespace ptrt {
namespace {

constexpr std::int64_t kTracks = 8;

ModelConfig eight_tracks() {
  return small_config({{"tracks", kTracks}, {"hidden_size", 64}, {"head_dim", 32}, {"ffn_size", 128}});
}

std::size_t bytes_of(const std::vector<TensorSpec>& tensors, DType dtype) {
  std::size_t bytes = 0;
  for (const TensorSpec& spec : tensors) bytes += static_cast<std::size_t>(spec.elements()) * size_of(dtype);
  return bytes;
}

// Bytes that this process has asked of the kernel, by the kernel's own count.
std::size_t bytes_asked() {
  std::ifstream io("/proc/self/io");
  std::string key;
  std::size_t value = 0;
  io >> key >> value;
  EXPECT_EQ(key, "rchar:");
  return value;
}

class ShardAccess : public testing::TestWithParam<bool> {};

TEST_P(ShardAccess, ReadsItsOwnTrackAlone) {
  const bool split = GetParam();
  const ModelConfig config = eight_tracks();
  TempFolder folder;
  write_model(folder / "m.h5", config, 5, DType::bfloat16, split);
  const auto backend = make_cpu_backend({.threads = 1});
  for (const std::int64_t track : {0, 3, 7}) {
    const std::size_t expected = bytes_of(shared_tensors(config), DType::bfloat16) +
                                 bytes_of(track_tensors(config, track), DType::bfloat16);
    const std::size_t asked_before = bytes_asked();
    const ModelFile file(folder / "m.h5");
    EXPECT_EQ(file.bytes_read(), 0u);
    load_shard(file, track, 1, *backend);
    const std::size_t asked = bytes_asked() - asked_before;

    EXPECT_EQ(file.bytes_read(), expected);
    std::vector<std::string> files{folder / "m.h5"};
    if (split) files.push_back(folder / ("m.track0" + std::to_string(track) + ".h5"));
    EXPECT_EQ(file.files_opened(), files);
    // The rest is the file's own structure: object headers, group trees, attribute heaps.
    EXPECT_GE(asked, expected);
    EXPECT_LT(asked, expected + 400 * 1024) << "of " << bytes_of(all_tensors(config), DType::bfloat16);
  }
}

TEST(ShardAccessOfSplitModel, NeedsNoOtherFile) {
  TempFolder folder;
  write_model(folder / "m.h5", eight_tracks(), 5, DType::bfloat16, true);
  for (int track = 0; track < kTracks; ++track)
    if (track != 4) std::filesystem::remove(folder / ("m.track0" + std::to_string(track) + ".h5"));
  const auto backend = make_cpu_backend({.threads = 1});
  const ModelFile file(folder / "m.h5");
  EXPECT_EQ(load_shard(file, 4, 1, *backend).first_track, 4);
  EXPECT_EQ(file.track_file(5), folder / "m.track05.h5");
}

// The ranks that share a track read its matrices between them, not each the whole; short rows alone are read
// with what lies between them.
TEST(ShardAccessOfSharedTrack, ReadsItsPartsAlone) {
  ModelConfig config = eight_tracks();
  config.heads = config.kv_heads = 4;
  config.ffn_pattern = {FfnKind::dense};
  config.moe.reset();
  config.ffn_size = 16384;  // half a row of w_down is more than a page
  TempFolder folder;
  write_model(folder / "m.h5", config, 5, DType::bfloat16, false);
  const auto backend = make_cpu_backend({.threads = 2});
  for (const std::int64_t rank : {0, 1}) {
    const TrackSplit split{2, rank};
    const ModelConfig mine = config_of_rank(config, split);
    EXPECT_EQ(mine.heads, 2);
    EXPECT_EQ(mine.ffn_size, 8192);
    const ModelFile file(folder / "m.h5");
    const TrackShard shard = load_shard(file, 3, 1, *backend, {}, split);
    EXPECT_EQ(shard.layers[0].wo[0].in, config.heads * config.head_dim / 2);
    EXPECT_EQ(shard.layers[0].w_down[0].in, 8192);
    const std::size_t least =
        bytes_of(shared_tensors(config), DType::bfloat16) + bytes_of(track_tensors(mine, 3), DType::bfloat16);
    const std::size_t wo =
        static_cast<std::size_t>(config.layers * config.heads * config.head_dim * config.hidden_size) * 2;
    EXPECT_GE(file.bytes_read(), least);
    EXPECT_LE(file.bytes_read(), least + wo / 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Files, ShardAccess, testing::Bool(),
                         [](const auto& p) { return p.param ? "Split" : "Whole"; });

}  // namespace
}  // namespace ptrt
