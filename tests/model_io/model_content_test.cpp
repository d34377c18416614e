// The identity of a model is its content, whichever ranks read which parts of it.
#include "model_io/shard/model_content.h"

#include <gtest/gtest.h>

#include <optional>

#include "h5_edit.h"
#include "kernels/make_cpu_backend.h"
#include "model_fixture.h"
#include "model_io/shard/track_shard.h"
#include "packed_models.h"

namespace ptrt {
namespace {

// How a job's ranks divide a model: `ranks` share a track, and all of them the head's rows.
struct Division {
  std::int64_t tracks = 1;  // a rank
  std::int64_t ranks = 1;
  bool head = false;
};

std::vector<RankContents> read_by_ranks(const std::string& path, const Division& division) {
  const ModelConfig config = ModelFile(path).config();
  const std::int64_t world = config.tracks / division.tracks * division.ranks;
  std::vector<RankContents> all;
  for (std::int64_t rank = 0; rank < world; ++rank) {
    const auto backend = make_cpu_backend({.threads = 2});
    HeadRows head;
    if (division.head) {
      head.first = config.vocab_size * rank / world;
      head.count = config.vocab_size * (rank + 1) / world - head.first;
    }
    const TrackShard shard =
        load_shard(ModelFile(path), rank / division.ranks * division.tracks, division.tracks, *backend, head,
                   {division.ranks, rank % division.ranks});
    all.push_back({"rank " + std::to_string(rank), shard.contents});
  }
  return all;
}

ContentDigests recorded_digests(const std::string& path) {
  const ModelFile file(path);
  return merge_contents(file,
                        std::vector<RankContents>{{"a", recorded_contents(file, 0, file.config().tracks)}});
}

ContentDigests read_digests(const std::string& path, const Division& division) {
  return merge_contents(ModelFile(path), read_by_ranks(path, division));
}

constexpr Division kDivisions[] = {{2, 1, false}, {1, 1, false}, {1, 1, true}, {2, 2, false},
                                   {1, 2, true},  {2, 4, true},  {1, 4, false}};

class ModelContent : public testing::TestWithParam<DType> {};

TEST_P(ModelContent, IsTheSameForEveryDivision) {
  TempFolder folder;
  const std::string rows = folder / "m.h5", panels = folder / "p.h5";
  for (const bool tied : {false, true}) {
    ModelConfig config = for_two_ranks();
    config.tie_embeddings = tied;
    config.ffn_size = GetParam() == DType::int8 ? 384 : 320;  // whole groups for each of four ranks
    config.moe->ffn_size = GetParam() == DType::int8 ? 128 : 68;
    config.attention_bias = {true, true, true, true};
    write_typed(rows, config, GetParam());
    const bool has_panels = GetParam() != DType::float8_e4m3;
    if (has_panels) rewrite(rows, panels, WeightLayout::panels);
    for (const std::string& path : {rows, has_panels ? panels : rows}) {
      const ContentDigests recorded = recorded_digests(path);
      EXPECT_EQ(recorded.tracks.size(), 2u);
      for (const Division& division : kDivisions)
        EXPECT_EQ(read_digests(path, division), recorded) << path << ": " << division.tracks << " tracks, "
                                                          << division.ranks << " ranks, " << division.head;
    }
    if (has_panels) {
      EXPECT_NE(recorded_digests(rows), recorded_digests(panels));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, ModelContent,
                         testing::Values(DType::float32, DType::float16, DType::bfloat16, DType::int8,
                                         DType::float8_e4m3),
                         [](const auto& p) { return std::string(to_string(p.param)); });

class DamagedModel : public testing::Test {
 protected:
  DamagedModel() : path_(folder_ / "m.h5") { write_model(path_, for_two_ranks(), 8, DType::bfloat16); }
  TempFolder folder_;
  std::string path_;
};

// First and last byte, and those at the edges of the parts.
TEST_F(DamagedModel, IsFoundInEveryPart) {
  const ModelConfig config = for_two_ranks();
  for (const TensorSpec& spec : model_tensors(config)) {
    const auto bytes = static_cast<std::size_t>(spec.elements()) * 2;
    const std::size_t row = static_cast<std::size_t>(spec.shape.back()) * 2;
    for (const std::size_t at : {std::size_t{0}, row / 2 - 1, row / 2, bytes / 2 - 1, bytes / 2, bytes - 1}) {
      if (spec.path.find("/01/") != std::string::npos) continue;  // as /00/
      flip_bit(path_, spec.path, at);
      expect_words(message_of([&] {
                     read_digests(path_, {2, 2, true});
                   }),
                   {spec.path, "expected crc32c", "damaged"});
      flip_bit(path_, spec.path, at);
    }
  }
  EXPECT_EQ(read_digests(path_, {2, 2, true}), recorded_digests(path_));
}

TEST_F(DamagedModel, HasAnotherIdentityWithoutChecksums) {
  const ContentDigests before = recorded_digests(path_);
  for (const char* name : {"/tracks/01/layers/000/wo", "/shared/lm_head"}) {
    remove_attribute(path_, name, "crc32c");
    EXPECT_EQ(read_digests(path_, {1, 2, true}), before) << name;
    flip_bit(path_, name, 77);
    const ContentDigests after = read_digests(path_, {1, 2, true});
    EXPECT_NE(after, before) << name;
    EXPECT_EQ(read_digests(path_, {2, 1, false}), after) << name;
    flip_bit(path_, name, 77);
  }
}

// Each rank has a file of its own. All four have the KV heads of a track, two of them the same one.
TEST(ModelsOfRanks, AreCompared) {
  TempFolder folder;
  const std::string a = folder / "a.h5", b = folder / "b.h5";
  ModelConfig config = for_two_ranks();
  write_model(a, config, 8, DType::bfloat16);
  for (const char* name : {"/shared/final_norm", "/shared/embedding", "/tracks/00/layers/000/wk"})
    remove_attribute(a, name, "crc32c");
  const auto join = [&](const Division& division, std::size_t other) {
    auto ranks = read_by_ranks(a, division);
    ranks[other] = read_by_ranks(b, division)[other];
    return merge_contents(ModelFile(a), ranks);
  };
  const auto copy = [&] {
    std::filesystem::copy_file(a, b, std::filesystem::copy_options::overwrite_existing);
  };
  copy();
  EXPECT_NO_THROW(join({2, 4}, 1));
  flip_bit(b, "/shared/embedding", 5);
  expect_words(message_of([&] { join({1, 1}, 1); }), {"/shared/embedding", "rank 0 and rank 1", "differ"});
  expect_words(message_of([&] { join({2, 4}, 2); }), {"/shared/embedding", "rank 0 and rank 2", "differ"});
  copy();
  flip_bit(b, "/tracks/00/layers/000/wk", 5);
  expect_words(message_of([&] { join({2, 4}, 1); }), {"wk", "rank 0 and rank 1", "differ"});
  copy();
  set_integer(b, "/tracks/00/layers/000/wk", "crc32c", 1);
  expect_words(message_of([&] { join({2, 4}, 1); }), {"wk", "stored differently", "rank 0 and rank 1"});
}

// A panel, a word or a pair of groups that is cut between ranks counts for the first of them alone, but the second
// uses it as well.
TEST(ModelsOfRanks, AreComparedWherePanelsAreCut) {
  TempFolder folder;
  const std::string rows = folder / "m.h5", a = folder / "a.h5", b = folder / "b.h5";
  ModelConfig config = for_two_ranks();
  for (const DType dtype : {DType::bfloat16, DType::int8}) {
    const bool int8 = dtype == DType::int8;
    config.head_dim = int8 ? 16 : 6;  // one of a pair of groups of wo a rank; 12 rows of wq
    const std::string name = std::string("/tracks/00/layers/000/") + (int8 ? "wo" : "wq");
    write_typed(rows, config, dtype);
    rewrite(rows, a, WeightLayout::panels);
    std::filesystem::copy_file(a, b, std::filesystem::copy_options::overwrite_existing);
    flip_bit(b, name, 74);  // of the first panel; of int8 behind the scales
    auto ranks = read_by_ranks(a, {2, 2});
    EXPECT_NO_THROW(merge_contents(ModelFile(a), ranks));
    ranks[1] = read_by_ranks(b, {2, 2})[1];
    expect_words(message_of([&] { merge_contents(ModelFile(a), ranks); }),
                 {name, "rank 0 and rank 1", "differ"});
  }
}

// The scales of rows that are cut between ranks count for the first of them alone, but all of them use these.
TEST(ModelsOfRanks, AreComparedWhereRowsOfFloat8AreCut) {
  TempFolder folder;
  const std::string a = folder / "a.h5", b = folder / "b.h5", name = "/tracks/00/layers/000/wo.scale";
  const ModelConfig config = for_two_ranks();
  write_typed(a, config, DType::float8_e4m3);
  std::filesystem::copy_file(a, b);
  flip_bit(b, name, 4 * 57 + 3);  // of an exponent
  auto ranks = read_by_ranks(a, {2, 2});
  EXPECT_NO_THROW(merge_contents(ModelFile(a), ranks));
  ranks[1] = read_by_ranks(b, {2, 2})[1];
  expect_words(message_of([&] { merge_contents(ModelFile(a), ranks); }),
               {name, "rank 0 and rank 1", "differ"});
}

// A dataset that the library reads counts as a whole for every rank.
TEST(ModelsOfRanks, MayBeInChunks) {
  TempFolder folder;
  const std::string path = folder / "m.h5";
  const ModelConfig config = for_two_ranks();
  write_model(path, config, 8);
  const TensorSpec spec = layer_tensors(config, 0, 0).at(4);
  const std::vector<double> values(static_cast<std::size_t>(spec.elements()), 0.5);
  replace_dataset(path, spec.path, ForeignType::float32, spec.shape, values);
  const ContentDigests whole = read_digests(path, {2, 1});
  replace_dataset(path, spec.path, ForeignType::float32, spec.shape, values,
                  ForeignLayout::compressed_chunks);
  EXPECT_EQ(read_digests(path, {2, 2}), whole);
}

}  // namespace
}  // namespace ptrt
