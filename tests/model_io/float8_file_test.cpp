// Matrices as float8 in the file, with their scales beside them.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "h5_edit.h"
#include "kernels/cpu/reference_backend.h"
#include "kernels/float8.h"
#include "kernels/make_cpu_backend.h"
#include "model_fixture.h"
#include "model_io/file/crc32c.h"
#include "model_io/file/tensor_copy.h"
#include "model_io/shard/shard_manifest.h"
#include "model_io/shard/track_shard.h"
#include "shard_content.h"

namespace ptrt {
namespace {

constexpr std::uint64_t kFloat8Seed = 4;
const TensorSpec kFloat8Experts{"/tracks/01/layers/001/experts/w_down", {3, 24, 10}, WeightRole::matrix};

class Float8File : public testing::TestWithParam<bool> {
 protected:
  Float8File() : path_(folder_ / "m.h5") {
    write_scaled_model(path_, config_, kFloat8Seed, DType::float8_e4m3, GetParam());
  }
  ModelConfig config_ = small_config();
  TempFolder folder_;
  std::string path_;
};

TEST_P(Float8File, HasTypesShapesAndChecksums) {
  const ModelFile file(path_);
  for (const TensorSpec& spec : all_tensors(config_)) {
    const StoredTensor stored = file.stat(spec);
    const bool matrix = spec.role == WeightRole::matrix;
    EXPECT_EQ(stored.dtype, matrix ? DType::float8_e4m3 : DType::bfloat16) << spec.path;
    ASSERT_EQ(stored.scales.has_value(), matrix) << spec.path;
    EXPECT_TRUE(stored.crc32c.has_value());
    if (!matrix) continue;
    EXPECT_EQ(stored.widened, DType::bfloat16);
    EXPECT_EQ(stored.bytes, static_cast<std::size_t>(spec.elements()));
    EXPECT_EQ(stored.scales->bytes, static_cast<std::size_t>(spec.elements() / spec.shape.back()) * 4);
    EXPECT_EQ(stored.scales->name, spec.path + ".scale");
    std::vector<std::byte> scales(stored.scales->bytes);
    file.open(stored)->read_scales(0, scales);
    EXPECT_EQ(stored.scales->crc32c, crc32c(0, scales)) << spec.path;
  }
}

// Half a step of three bits of fraction is a 16th of the element, and of the largest where that is subnormal.
TEST_P(Float8File, EveryElementIsNearWhatItWas) {
  ReferenceBackend backend;
  const TrackShard shard = load_shard(ModelFile(path_), 0, 2, backend);
  const Weight& weight = shard.layers[1].expert_down[1];
  ASSERT_EQ(weight.dtype, DType::bfloat16);
  const std::vector<std::byte> exact = random_tensor(config_, kFloat8Experts, kFloat8Seed, DType::float32);
  bool any = false;
  for (std::int64_t i = 0; i < kFloat8Experts.elements(); ++i) {
    float expected = 0;
    std::memcpy(&expected, exact.data() + i * 4, 4);
    const float found = weight_element(weight, i);
    EXPECT_LE(std::abs(found - expected), std::abs(expected) / 15 + 1e-4f);
    any |= found != expected;
  }
  EXPECT_TRUE(any);
}

// What is planned is what is taken, and each byte is read once.
TEST_P(Float8File, MemoryIsPlannedAndEveryByteIsReadOnce) {
  for (const bool powers : {true, false}) {
    if (!powers)
      for (std::int64_t t = 0; t < 2; ++t)
        replace_dataset(GetParam() ? folder_ / ("m.track0" + std::to_string(t) + ".h5") : path_,
                        "/tracks/0" + std::to_string(t) + "/layers/001/experts/w_down.scale",
                        ForeignType::float32, {3, 24}, std::vector<double>(72, 0.3));
    const ModelFile file(path_);
    TrackShard places;
    std::int64_t planned = 0;
    for (ShardEntry& entry : make_manifest({file.config(), 0, 2, {}, {}}, places)) {
      entry.stored = file.stat(entry.whole);
      planned += static_cast<std::int64_t>(cpu_weight_bytes(entry.weight(), {}));
    }
    EXPECT_EQ(file.bytes_read(), 0U);
    std::size_t stored = 0;
    for (const TensorSpec& spec : all_tensors(config_)) {
      const StoredTensor found = file.stat(spec);
      stored += found.bytes + (found.scales ? found.scales->bytes : 0);
    }
    const auto backend = make_cpu_backend({.threads = 2});
    const TrackShard shard = load_shard(file, 0, 2, *backend);
    EXPECT_EQ(static_cast<std::int64_t>(backend->weight_bytes()), planned);
    EXPECT_EQ(file.bytes_read(), stored);
    EXPECT_EQ(shard.layers[1].expert_down[0].dtype, powers ? DType::bfloat16 : DType::float32);
    EXPECT_EQ(shard.layers[1].expert_up[0].dtype, DType::bfloat16);
  }
}

TEST_P(Float8File, IsCopiedElementByElement) {
  {
    const ModelFile model(path_);
    ModelWriter writer(folder_ / "copy.h5", config_, false);
    TensorCopy copy(model, writer, TensorCopy::NotFinite::keep);
    for (const TensorSpec& spec : all_tensors(config_)) copy.copy(spec, model.stat(spec), WeightLayout::rows);
    writer.commit();
  }
  const ModelFile one(path_), other(folder_ / "copy.h5");
  for (const TensorSpec& spec : all_tensors(config_)) {
    const StoredTensor a = one.stat(spec), b = other.stat(spec);
    EXPECT_EQ(a.dtype, b.dtype);
    EXPECT_EQ(a.crc32c, b.crc32c);
    if (a.scales) {
      EXPECT_EQ(a.scales->crc32c, b.scales->crc32c);
    }
    EXPECT_EQ(read_tensor(one, a), read_tensor(other, b));
  }
}

// Another process that read the metadata hands the types on.
TEST_P(Float8File, WidenedTypesAreMetadata) {
  const ModelMetadata known = metadata_from_bytes(to_bytes(ModelFile(path_).metadata()), path_);
  const ModelFile file(path_, false, &known);
  const auto backend = make_cpu_backend({.threads = 1}), same = make_cpu_backend({.threads = 1});
  EXPECT_EQ(all_weights(load_shard(file, 0, 2, *backend)),
            all_weights(load_shard(ModelFile(path_), 0, 2, *same)));
  EXPECT_EQ(file.stat(kFloat8Experts).widened, DType::bfloat16);
}

INSTANTIATE_TEST_SUITE_P(Files, Float8File, testing::Bool(),
                         [](const auto& p) { return p.param ? "Split" : "Whole"; });

// Every code, and scales of which one is zero; where the library reads chunks too.
TEST(ForeignFloat8File, HasTheValuesOfTheDefinition) {
  TempFolder folder;
  const std::string path = folder / "m.h5";
  write_scaled_model(path, small_config(), kFloat8Seed, DType::float8_e4m3);
  std::vector<double> codes(720), scales(72);
  for (std::size_t i = 0; i < codes.size(); ++i)
    codes[i] = is_float8_nan(static_cast<std::uint8_t>(i)) ? 1.0 : static_cast<double>(i % 256);
  for (const bool powers : {true, false}) {
    for (std::size_t i = 0; i < scales.size(); ++i)
      scales[i] =
          powers ? std::ldexp(1.0, static_cast<int>(i) - 40) : static_cast<double>(static_cast<float>(i) / 7);
    scales[5] = 0;
    for (const ForeignLayout layout : {ForeignLayout::contiguous, ForeignLayout::compressed_chunks}) {
      replace_dataset(path, kFloat8Experts.path, ForeignType::uint8, kFloat8Experts.shape, codes, layout);
      set_fixed_string(path, kFloat8Experts.path, "dtype", "float8_e4m3fn");
      replace_dataset(path, scale_path(kFloat8Experts), ForeignType::float32, {3, 24}, scales, layout);
      ReferenceBackend backend;
      const TrackShard shard = load_shard(ModelFile(path), 0, 2, backend);
      const Weight& weight = shard.layers[1].expert_down[1];
      ASSERT_EQ(weight.dtype, powers ? DType::bfloat16 : DType::float32);
      for (std::size_t i = 0; i < codes.size(); ++i)
        ASSERT_EQ(
            weight_element(weight, static_cast<std::int64_t>(i)),
            static_cast<float>(double{from_float8(static_cast<std::uint8_t>(codes[i]))} * scales[i / 10]));
    }
  }
}

TEST(BadFloat8File, IsRefusedWithItsReason) {
  TempFolder folder;
  const std::string good = folder / "good.h5", path = folder / "m.h5", scale = scale_path(kFloat8Experts);
  write_scaled_model(good, small_config(), kFloat8Seed, DType::float8_e4m3);
  const auto scales = [&](double last, ForeignType type = ForeignType::float32,
                          ForeignLayout layout = ForeignLayout::contiguous) {
    std::vector<double> values(72, 1.0);
    values.back() = last;
    replace_dataset(path, scale, type, {3, 24}, values, layout);
  };
  const auto codes = [&](const std::string& name, const std::vector<std::int64_t>& shape, const char* dtype,
                         double last = 0) {
    std::int64_t elements = 1;
    for (const std::int64_t extent : shape) elements *= extent;
    std::vector<double> values(static_cast<std::size_t>(elements), 1.0);
    values.back() = last;
    replace_dataset(path, name, ForeignType::uint8, shape, values);
    if (dtype != nullptr) set_fixed_string(path, name, "dtype", dtype);
  };
  struct Bad {
    const char* what;
    std::function<void()> damage;
    std::vector<std::string> words;
    bool known_at_once = true;  // before any matrix is read
  };
  const Bad all[] = {
      {"no attribute",
       [&] { codes(kFloat8Experts.path, kFloat8Experts.shape, nullptr); },
       {kFloat8Experts.path, "float8", "found uint8"}},
      {"another attribute",
       [&] { codes(kFloat8Experts.path, kFloat8Experts.shape, "float8_e5m2"); },
       {kFloat8Experts.path, "float8_e4m3fn", "float8_e5m2"}},
      {"another shape",
       [&] {
         codes(kFloat8Experts.path, {3, 24, 11}, "float8_e4m3fn");
       },
       {kFloat8Experts.path, "[3, 24, 11]"}},
      {"router",
       [&] {
         codes("/tracks/01/layers/001/router", {3, 24}, "float8_e4m3fn");
       },
       {"router", "for matrices"}},
      {"norm", [&] { codes("/shared/final_norm", {24}, "float8_e4m3fn"); }, {"final_norm", "for matrices"}},
      {"no scale", [&] { remove_object(path, scale); }, {scale, "missing", "float8_e4m3fn"}},
      {"half scales", [&] { scales(1, ForeignType::float16); }, {scale, "expected float32", "float16"}},
      {"wide scales", [&] { scales(1, ForeignType::float64); }, {scale, "expected float32", "float64"}},
      {"unfinished scales",
       [&] { scales(1, ForeignType::float32, ForeignLayout::never_written); },
       {scale, "incomplete"}},
      {"negative", [&] { scales(-2); }, {scale, "row 71", "found -2"}},
      {"negative zero", [&] { scales(-0.0); }, {scale, "row 71", "found -0"}},
      {"infinite", [&] { scales(INFINITY); }, {scale, "row 71", "found inf"}},
      {"NaN", [&] { scales(NAN); }, {scale, "row 71", "nan"}},
      {"large", [&] { scales(0x1.8p119); }, {scale, "row 71", "2^119"}},
      {"NaN code",
       [&] { codes(kFloat8Experts.path, kFloat8Experts.shape, "float8_e4m3fn", 0x7F); },
       {kFloat8Experts.path, "element 9 of row 71", "NaN"},
       false},
      {"negative NaN code",
       [&] { codes(kFloat8Experts.path, kFloat8Experts.shape, "float8_e4m3fn", 0xFF); },
       {kFloat8Experts.path, "element 9 of row 71", "NaN"},
       false},
      {"flipped bit",
       [&] { flip_bit(path, kFloat8Experts.path); },
       {kFloat8Experts.path + ":", "crc32c", "damaged"},
       false},
  };
  for (const Bad& bad : all) {
    SCOPED_TRACE(bad.what);
    std::filesystem::copy_file(good, path, std::filesystem::copy_options::overwrite_existing);
    bad.damage();
    const ModelFile file(path);
    const auto backend = make_cpu_backend({.threads = 1});
    expect_words(message_of([&] { load_shard(file, 0, 2, *backend); }), bad.words);
    if (bad.known_at_once) {
      EXPECT_EQ(backend->weight_bytes(), 0U);
    }
  }
}

}  // namespace
}  // namespace ptrt
