#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>
#include <tuple>

#include "kernels/cpu/reference_backend.h"
#include "kernels/make_cpu_backend.h"
#include "model_fixture.h"
#include "model_io/file/crc32c.h"
#include "model_io/file/model_file.h"
#include "model_io/shard/track_shard.h"
#include "shard_content.h"

namespace ptrt {
namespace {

constexpr std::uint64_t kSeed = 11;

class RoundTrip : public testing::TestWithParam<std::tuple<DType, bool>> {
 protected:
  RoundTrip() : dtype_(std::get<0>(GetParam())), split_(std::get<1>(GetParam())) {}
  DType dtype_;
  bool split_;
  TempFolder folder_;
};

TEST_P(RoundTrip, WhatWasWrittenIsRead) {
  const ModelConfig config = small_config();
  write_model(folder_ / "m.h5", config, kSeed, dtype_, split_);
  const ModelFile file(folder_ / "m.h5");
  EXPECT_EQ(to_json(file.config()), to_json(config));
  EXPECT_EQ(file.tokenizer().kind, "bytes");
  std::size_t bytes = 0;
  for (const TensorSpec& spec : all_tensors(config)) {
    const StoredTensor stored = file.stat(spec);
    EXPECT_EQ(stored.dtype, dtype_);
    EXPECT_EQ(stored.shape, spec.shape);
    EXPECT_EQ(stored.bytes, static_cast<std::size_t>(spec.elements()) * size_of(dtype_));
    const auto content = random_tensor(config, spec, kSeed, dtype_);
    EXPECT_EQ(stored.crc32c, crc32c(0, content));
    EXPECT_EQ(read_tensor(file, stored), content) << spec.path;
    bytes += stored.bytes;
  }
  EXPECT_EQ(file.bytes_read(), bytes);
  EXPECT_EQ(file.files_opened().size(), split_ ? 3u : 1u);
}

TEST_P(RoundTrip, ShardHoldsEveryTensorInItsPlace) {
  const ModelConfig config = small_config();
  write_model(folder_ / "m.h5", config, kSeed, dtype_, split_);
  ReferenceBackend backend;  // keeps rows as they are
  const TrackShard shard = load_shard(ModelFile(folder_ / "m.h5"), 0, 2, backend);
  const auto expect_matrix = [&](const Weight& weight, const TensorSpec& spec) {
    const auto expected = random_tensor(config, spec, kSeed, dtype_);
    ASSERT_EQ(static_cast<std::size_t>(weight.count * weight.out * weight.in) * size_of(weight.dtype),
              expected.size())
        << spec.path;
    EXPECT_EQ(weight.dtype, dtype_);
    EXPECT_EQ(std::memcmp(weight.data, expected.data(), expected.size()), 0) << spec.path;
  };
  expect_matrix(shard.embedding, {"/shared/embedding", {259, 24}, WeightRole::embedding});
  expect_matrix(shard.lm_head, {"/shared/lm_head", {259, 24}, WeightRole::matrix});
  const LayerWeights &dense = shard.layers[2], &mixture = shard.layers[1];
  expect_matrix(dense.wk[1], {"/tracks/01/layers/002/wk", {12, 24}, WeightRole::matrix});
  expect_matrix(dense.w_down[0], {"/tracks/00/layers/002/w_down", {24, 20}, WeightRole::matrix});
  expect_matrix(mixture.expert_down[1],
                {"/tracks/01/layers/001/experts/w_down", {3, 24, 10}, WeightRole::matrix});
  EXPECT_EQ(mixture.expert_down[1].count, 3);
  EXPECT_EQ(mixture.expert_down[1].out, 24);
  EXPECT_EQ(mixture.expert_down[1].in, 10);
  expect_matrix(mixture.router[0], {"/tracks/00/layers/001/router", {3, 24}, WeightRole::matrix});
  EXPECT_TRUE(mixture.w_gate.empty());
  EXPECT_TRUE(dense.router.empty());
  EXPECT_EQ(dense.q_norm[1].in, 6);
  EXPECT_EQ(weight_element(shard.final_norm[0], 23), 1.0f);
  EXPECT_EQ(shard.blocks[1].dispatch_norm.size(), 2u);
  EXPECT_TRUE(shard.blocks[1].combine_norm.empty());
}

TEST_P(RoundTrip, RandomShardIsWhatTheFileHolds) {
  const ModelConfig config = small_config();
  write_model(folder_ / "m.h5", config, kSeed, dtype_, split_);
  const auto backend = make_cpu_backend({.threads = 1});
  const ModelFile file(folder_ / "m.h5");
  const TrackShard loaded = load_shard(file, 0, 2, *backend), second = load_shard(file, 1, 1, *backend);
  const TrackShard random = random_shard(config, kSeed, dtype_, 1, 1, *backend);
  EXPECT_EQ(shared_digest(config, random), shared_digest(config, loaded));
  EXPECT_EQ(track_digest(config, random, 1), track_digest(config, second, 1));
  EXPECT_EQ(track_digest(config, loaded, 1), track_digest(config, second, 1));
  EXPECT_NE(track_digest(config, loaded, 0), track_digest(config, loaded, 1));
  const TrackShard other = random_shard(config, kSeed + 1, dtype_, 1, 1, *backend);
  EXPECT_NE(shared_digest(config, other), shared_digest(config, loaded));
  EXPECT_NE(track_digest(config, other, 1), track_digest(config, second, 1));
}

INSTANTIATE_TEST_SUITE_P(All, RoundTrip,
                         testing::Combine(testing::Values(DType::float32, DType::float16, DType::bfloat16),
                                          testing::Bool()),
                         [](const auto& p) {
                           return std::string(to_string(std::get<0>(p.param))) +
                                  (std::get<1>(p.param) ? "Split" : "Whole");
                         });

TEST(RoundTripOfTiedEmbeddings, HeadIsTheEmbedding) {
  TempFolder folder;
  write_model(folder / "m.h5", small_config({{"tie_embeddings", true}}), 1);
  const auto backend = make_cpu_backend({.threads = 1});
  const TrackShard shard = load_shard(ModelFile(folder / "m.h5"), 0, 1, *backend);
  EXPECT_EQ(shard.lm_head.data, shard.embedding.data);
}

TEST(RoundTripOfSplitModel, FolderCanMove) {
  TempFolder folder;
  std::filesystem::create_directory(folder / "here");
  write_model(folder / "here/m.h5", small_config(), 1, DType::bfloat16, true);
  std::filesystem::rename(folder / "here", folder / "there");
  const ModelFile file(folder / "there/m.h5");
  EXPECT_EQ(file.track_file(1), folder / "there/m.track01.h5");
  EXPECT_NO_THROW(file.stat(track_tensors(file.config(), 1)[0]));
}

// The order of writing does not matter, and equal content gives equal files.
TEST(RoundTripOfFiles, EqualModelsMakeEqualFiles) {
  TempFolder folder;
  write_model(folder / "a.h5", small_config(), 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // a time in a file has whole seconds
  write_model(folder / "b.h5", small_config(), 1);
  std::vector<std::string> contents;
  for (const char* name : {"a.h5", "b.h5"}) {
    std::ifstream stream(folder / name, std::ios::binary);
    contents.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
  }
  EXPECT_EQ(contents[0], contents[1]);
}

}  // namespace
}  // namespace ptrt
