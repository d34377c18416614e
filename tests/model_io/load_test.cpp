// Loading by several threads: the same bits as by one, and damage found wherever it is.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "h5_edit.h"
#include "kernels/make_cpu_backend.h"
#include "model_fixture.h"
#include "model_io/shard/track_shard.h"
#include "shard_content.h"

namespace ptrt {
namespace {

struct LoadCase {
  const char* what;
  DType dtype;  // of the file
  CpuOptions options;
};

TEST(LoadByThreads, GivesTheBitsOfOneThread) {
  const LoadCase cases[] = {{"float32", DType::float32, {}},
                            {"float16", DType::float16, {}},
                            {"bfloat16", DType::bfloat16, {.compute = Compute::bfloat16}},
                            {"rounded", DType::float32, {.compute = Compute::bfloat16}},
                            {"rounded halves", DType::float16, {.compute = Compute::bfloat16}},
                            {"quantised", DType::bfloat16, {.compute = Compute::int8, .quantize_int8 = true}},
                            {"int8", DType::int8, {.compute = Compute::int8}}};
  for (const LoadCase& c : cases) {
    SCOPED_TRACE(c.what);
    TempFolder folder;
    if (c.dtype == DType::int8) {
      write_int8_model(folder / "m.h5", many_pieces(), 6);
    } else {
      write_model(folder / "m.h5", many_pieces(), 6, c.dtype);
    }
    std::vector<std::string> expected;
    std::uint64_t digest = 0;
    for (const int threads : {1, 2, 5}) {
      CpuOptions options = c.options;
      options.threads = threads;
      const auto backend = make_cpu_backend(options);
      const TrackShard shard = load_shard(ModelFile(folder / "m.h5"), 0, 1, *backend);
      if (threads == 1) expected = all_weights(shard), digest = track_digest(many_pieces(), shard, 0);
      EXPECT_EQ(all_weights(shard), expected) << threads;
      EXPECT_EQ(track_digest(many_pieces(), shard, 0), digest) << threads;
    }
  }
}

// A file of another writer, in compressed chunks, is read another way.
TEST(LoadByThreads, GivesTheSameOfChunkedData) {
  TempFolder folder;
  const ModelConfig config = many_pieces();
  write_model(folder / "m.h5", config, 6);
  const auto load = [&](int threads) {
    const auto backend = make_cpu_backend({.threads = threads});
    return all_weights(load_shard(ModelFile(folder / "m.h5"), 0, 1, *backend));
  };
  const std::vector<std::string> expected = load(1);
  for (const TensorSpec& spec : all_tensors(config)) {
    if (spec.role == WeightRole::vector) continue;
    const std::vector<std::byte> bytes = random_tensor(config, spec, 6, DType::float32);
    std::vector<double> values(static_cast<std::size_t>(spec.elements()));
    for (std::size_t i = 0; i < values.size(); ++i) {
      float value;
      std::memcpy(&value, bytes.data() + 4 * i, 4);
      values[i] = value;
    }
    replace_dataset(folder / "m.h5", spec.path, ForeignType::float32, spec.shape, values,
                    ForeignLayout::compressed_chunks);
    ASSERT_FALSE(ModelFile(folder / "m.h5").stat(spec).offset.has_value());
  }
  EXPECT_EQ(load(1), expected);
  EXPECT_EQ(load(3), expected);
}

TEST(LoadByThreads, FindsDamageWhereverItIs) {
  TempFolder folder;
  write_model(folder / "m.h5", many_pieces(), 6);
  for (const char* name : {"/tracks/00/layers/000/w_down", "/shared/embedding"}) {
    const std::size_t bytes = std::string(name) == "/shared/embedding" ? 1003 * 210 * 4 : 210 * 1001 * 4;
    for (const std::size_t at :
         {std::size_t{0}, std::size_t{131071}, std::size_t{131072}, bytes / 2, bytes - 1}) {
      flip_bit(folder / "m.h5", name, at);
      const auto backend = make_cpu_backend({.threads = 2});
      expect_words(message_of([&] { load_shard(ModelFile(folder / "m.h5"), 0, 1, *backend); }),
                   {name, "expected crc32c", "damaged"});
      flip_bit(folder / "m.h5", name, at);
    }
  }
  const auto backend = make_cpu_backend({.threads = 2});
  EXPECT_NO_THROW(load_shard(ModelFile(folder / "m.h5"), 0, 1, *backend));
}

std::size_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (std::size_t value = 0; word == "VmHWM:" && status >> value) return value * 1024;
  return 0;
}

// One tensor has most of the model: there is no second copy of it at any time.
TEST(LoadByThreads, HoldsEachWeightOnce) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer holds on to memory";
#endif
  TempFolder folder;
  const ModelConfig config = small_config({{"tracks", 1}, {"vocab_size", 300000}, {"hidden_size", 64}});
  write_model(folder / "m.h5", config, 6, DType::bfloat16);
  std::ofstream("/proc/self/clear_refs") << 5;  // the peak starts anew
  const std::size_t before = peak_resident_bytes();
  const auto backend = make_cpu_backend({.threads = 2, .compute = Compute::bfloat16});
  const TrackShard shard = load_shard(ModelFile(folder / "m.h5"), 0, 1, *backend);
  const std::size_t grown = peak_resident_bytes() - before;
  EXPECT_GT(backend->weight_bytes(), 75'000'000u);
  EXPECT_LT(grown, backend->weight_bytes() + 12'000'000);
}

}  // namespace
}  // namespace ptrt
