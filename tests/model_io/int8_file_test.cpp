// Matrices as int8 in the file, with their scales beside them.
#include <gtest/gtest.h>

#include <cstring>

#include "h5_edit.h"
#include "kernels/cpu/reference_backend.h"
#include "kernels/cpu/weights/packed.h"
#include "kernels/int8.h"
#include "kernels/make_cpu_backend.h"
#include "model_fixture.h"
#include "model_io/file/crc32c.h"
#include "model_io/shard/track_shard.h"
#include "shard_content.h"

namespace ptrt {
namespace {

constexpr std::uint64_t kSeed = 4;

// Rows of 70 elements: two whole groups and a part of one.
ModelConfig three_groups() {
  return small_config({{"hidden_size", 70}});
}

class Int8File : public testing::TestWithParam<bool> {
 protected:
  Int8File() : config_(three_groups()), path_(folder_ / "m.h5") {
    write_int8_model(path_, config_, kSeed, GetParam());
  }
  ModelConfig config_;
  TempFolder folder_;
  std::string path_;
};

TEST_P(Int8File, HasTypesShapesAndChecksums) {
  const ModelFile file(path_);
  for (const TensorSpec& spec : all_tensors(config_)) {
    const StoredTensor stored = file.stat(spec);
    const bool matrix = spec.role == WeightRole::matrix;
    EXPECT_EQ(stored.dtype, matrix ? DType::int8 : DType::bfloat16) << spec.path;
    ASSERT_EQ(stored.scales.has_value(), matrix) << spec.path;
    EXPECT_TRUE(stored.crc32c.has_value());
    if (!matrix) continue;
    const auto rows = static_cast<std::size_t>(spec.elements() / spec.shape.back());
    const auto groups = static_cast<std::size_t>(int8_groups(spec.shape.back()));
    EXPECT_EQ(stored.bytes, rows * static_cast<std::size_t>(spec.shape.back()));
    EXPECT_EQ(stored.scales->bytes, rows * groups * 2);
    EXPECT_EQ(stored.scales->name, spec.path + ".scale");
    std::vector<std::byte> scales(stored.scales->bytes);
    file.open(stored)->read_scales(0, scales);
    EXPECT_EQ(stored.scales->crc32c, crc32c(0, scales)) << spec.path;
  }
}

TEST_P(Int8File, EveryElementIsNearWhatItWas) {
  ReferenceBackend backend;
  const TrackShard shard = load_shard(ModelFile(path_), 0, 2, backend);
  const TensorSpec spec{"/tracks/01/layers/001/experts/w_up", {3, 10, 70}, WeightRole::matrix};
  const Weight& weight = shard.layers[1].expert_up[1];
  ASSERT_EQ(weight.dtype, DType::int8);
  std::vector<std::byte> exact(2100 * sizeof(float));
  random_elements(config_, spec, kSeed, DType::float32, 0, exact);
  float worst = 0;
  for (std::int64_t i = 0; i < 2100; ++i) {
    float expected;
    std::memcpy(&expected, exact.data() + i * 4, 4);
    worst = std::max(worst, std::abs(weight_element(weight, i) - expected));
  }
  EXPECT_LT(worst,
            0.5f * 3.5f / std::sqrt(70.0f) / 127 * 1.5f);  // half a step of the largest scale, and rounding
  EXPECT_GT(worst, 0.0f);
}

// The file that `ptrt quantize` writes gives what --weights int8 makes on load, bit for bit.
TEST_P(Int8File, LoadsAsIfQuantisedOnLoad) {
  write_model(folder_ / "wide.h5", config_, kSeed, DType::bfloat16);
  for (const Compute compute : {Compute::float32, Compute::int8}) {
    const auto small = make_cpu_backend({.threads = 2, .compute = compute});
    const auto quantizing = make_cpu_backend({.threads = 2, .compute = compute, .quantize_int8 = true});
    const TrackShard read = load_shard(ModelFile(path_), 0, 2, *small);
    const TrackShard made = load_shard(ModelFile(folder_ / "wide.h5"), 0, 2, *quantizing);
    EXPECT_EQ(small->weight_bytes(), quantizing->weight_bytes());
    const auto expect_same = [](const Weight& a, const Weight& b) {
      ASSERT_EQ(a.dtype, DType::int8);
      ASSERT_EQ(b.dtype, DType::int8);
      const auto bytes = static_cast<std::size_t>(a.count * packed_layout(a).matrix_bytes());
      EXPECT_EQ(std::memcmp(a.data, b.data, bytes), 0);
    };
    expect_same(read.lm_head, made.lm_head);
    for (std::size_t t = 0; t < 2; ++t) {
      expect_same(read.layers[0].wo[t], made.layers[0].wo[t]);
      expect_same(read.layers[2].w_down[t], made.layers[2].w_down[t]);
      expect_same(read.layers[1].expert_gate[t], made.layers[1].expert_gate[t]);
    }
  }
}

TEST_P(Int8File, DigestKnowsTheScales) {
  const auto digest_of_track_1 = [&] {
    ReferenceBackend backend;
    const ModelFile file(path_);
    return track_digest(file.config(), load_shard(file, 1, 1, backend), 1);
  };
  const std::uint64_t before = digest_of_track_1();
  EXPECT_EQ(digest_of_track_1(), before);
  const std::string holder = GetParam() ? folder_ / "m.track01.h5" : path_;
  const std::string scales = "/tracks/01/layers/000/wo.scale";
  remove_attribute(holder, scales, "crc32c");
  EXPECT_EQ(digest_of_track_1(), before);
  flip_bit(holder, scales);
  EXPECT_NE(digest_of_track_1(), before);
}

INSTANTIATE_TEST_SUITE_P(Files, Int8File, testing::Bool(),
                         [](const auto& p) { return p.param ? "Split" : "Whole"; });

TEST(ChunkedInt8File, LoadsAsAContiguousOne) {
  TempFolder folder;
  const ModelConfig config = three_groups();
  write_int8_model(folder / "m.h5", config, kSeed);
  const TensorSpec spec{"/tracks/01/layers/001/experts/w_down", {3, 70, 10}, WeightRole::matrix};
  std::vector<double> q(2100), scales(210);
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = static_cast<double>(i * 7 % 255) - 127;
  for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<double>(i) / 64;
  for (const ForeignLayout layout : {ForeignLayout::contiguous, ForeignLayout::compressed_chunks}) {
    replace_dataset(folder / "m.h5", spec.path, ForeignType::int8, {3, 70, 10}, q, layout);
    replace_dataset(folder / "m.h5", scale_path(spec), ForeignType::float16, {3, 70, 1}, scales, layout);
    ReferenceBackend backend;
    const TrackShard shard = load_shard(ModelFile(folder / "m.h5"), 0, 2, backend);
    for (std::int64_t i = 0; i < 2100; ++i)
      ASSERT_EQ(double{weight_element(shard.layers[1].expert_down[1], i)},
                q[static_cast<std::size_t>(i)] * scales[static_cast<std::size_t>(i / 10)]);
  }
}

TEST(Int8Rows, NameTheElementThatInt8CannotHold) {
  const WeightSpec stack{"/some/experts", WeightRole::matrix, DType::float32, 3, 4, 40};
  const auto message = [&](float value) {
    std::vector<float> rows(2 * 40, 1.0f);
    rows[40 + 33] = value;  // of row 9 where the first is row 8: matrix 2, out 1
    Int8Rows quantized;
    return message_of([&] { quantized.quantize(stack, 8, std::as_bytes(std::span(rows))); });
  };
  EXPECT_EQ(message(kLargestInt8Weight), "");
  EXPECT_EQ(message(-kLargestInt8Weight), "");
  for (const float bad : {INFINITY, -INFINITY, std::nextafter(kLargestInt8Weight, INFINITY), 3e38f})
    expect_words(message(bad), {"/some/experts", "[2, 1, 33]", "finite"});
  expect_words(message(NAN), {"[2, 1, 33]", "nan"});
}

}  // namespace
}  // namespace ptrt
