// Files that are damaged or do not fit their config: bad input, and a message that names the culprit.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>

#include "h5_edit.h"
#include "kernels/make_cpu_backend.h"
#include "model_fixture.h"
#include "model_io/file/model_file.h"
#include "model_io/shard/track_shard.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

const std::string kMatrix = "/tracks/01/layers/002/wk";               // [12, 24]
const std::string kExperts = "/tracks/00/layers/001/experts/w_gate";  // [3, 10, 24]

void load(const std::string& path) {
  const ModelFile file(path);
  make_tokenizer(file.tokenizer(), file.config());
  const auto backend = make_cpu_backend({.threads = 1});
  load_shard(file, 0, file.config().tracks, *backend);
}

void overwrite(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

void shorten(const std::string& path, std::size_t bytes) {
  fs::resize_file(path, fs::file_size(path) - bytes);
}

std::vector<double> zeros(std::size_t n) {
  return std::vector<double>(n, 0.0);
}

struct BadFile {
  const char* what;
  std::function<void(const std::string& path)> damage;
  std::vector<std::string> words;
};

std::vector<BadFile> bad_files() {
  using P = const std::string&;
  const auto replaced = [](ForeignType type, std::vector<std::int64_t> shape, std::size_t n) {
    return [=](P p) { replace_dataset(p, kMatrix, type, shape, zeros(n)); };
  };
  return {
      {"no such file", [](P p) { fs::remove(p); }, {"m.h5", "cannot open", "No such file"}},
      {"a folder", [](P p) { fs::remove(p), fs::create_directory(p); }, {"m.h5", "not a regular file"}},
      {"text", [](P p) { overwrite(p, "hello\n"); }, {"m.h5", "not an HDF5 file"}},
      {"empty", [](P p) { overwrite(p, ""); }, {"m.h5", "not an HDF5 file"}},
      {"truncated", [](P p) { shorten(p, 10); }, {"m.h5", "truncated"}},
      {"half", [](P p) { fs::resize_file(p, fs::file_size(p) / 2); }, {"m.h5", "truncated"}},
      {"no format",
       [](P p) { remove_attribute(p, "/", "format"); },
       {"not a ptrt model", "\"format\" is missing"}},
      {"other format", [](P p) { set_fixed_string(p, "/", "format", "gguf"); }, {"\"ptrt\"", "\"gguf\""}},
      {"no version",
       [](P p) { remove_attribute(p, "/", "format_version"); },
       {"\"format_version\" is missing"}},
      {"other version",
       [](P p) { set_integer(p, "/", "format_version", 2); },
       {"format_version", "1", "found 2"}},
      {"version in words",
       [](P p) { set_fixed_string(p, "/", "format_version", "1"); },
       {"format_version", "expected an integer", "strings"}},
      {"no config", [](P p) { remove_attribute(p, "/", "config"); }, {"\"config\" is missing"}},
      {"config a number",
       [](P p) { set_integer(p, "/", "config", 3); },
       {"\"config\"", "expected a string", "int64"}},
      {"config no JSON", [](P p) { set_fixed_string(p, "/", "config", "{"); }, {"m.h5", "JSON"}},
      {"dataset missing", [](P p) { remove_object(p, kMatrix); }, {"m.h5", kMatrix, "missing", "[12, 24]"}},
      {"layer missing",
       [](P p) { remove_object(p, "/tracks/01/layers/002"); },
       {"/tracks/01/layers/002/", "missing"}},
      {"track missing", [](P p) { remove_object(p, "/tracks/01"); }, {"/tracks/01/", "missing"}},
      {"a group for a dataset", [](P p) { replace_by_group(p, kMatrix); }, {kMatrix, "dataset"}},
      {"misshapen", replaced(ForeignType::float32, {12, 23}, 276), {kMatrix, "[12, 24]", "[12, 23]"}},
      {"transposed", replaced(ForeignType::float32, {24, 12}, 288), {kMatrix, "[12, 24]", "[24, 12]"}},
      {"flat", replaced(ForeignType::float32, {288}, 288), {kMatrix, "[12, 24]", "[288]"}},
      {"scalar", replaced(ForeignType::float32, {}, 1), {kMatrix, "[12, 24]", "[]"}},
      {"float64", replaced(ForeignType::float64, {12, 24}, 288), {kMatrix, "bfloat16", "found float64"}},
      {"int32", replaced(ForeignType::int32, {12, 24}, 288), {kMatrix, "found int32"}},
      {"bare uint16", replaced(ForeignType::uint16, {12, 24}, 288), {kMatrix, "dtype", "found none"}},
      {"uint16 of another type",
       [](P p) {
         replace_dataset(p, kMatrix, ForeignType::uint16, {12, 24}, zeros(288));
         set_fixed_string(p, kMatrix, "dtype", "int16");
       },
       {kMatrix, "bfloat16", "found dtype = \"int16\""}},
      {"never written",
       [](P p) {
         replace_dataset(p, kMatrix, ForeignType::float32, {12, 24}, {}, ForeignLayout::never_written);
       },
       {kMatrix, "incomplete"}},
      {"half written",
       [](P p) {
         replace_dataset(p, kExperts, ForeignType::float32, {3, 10, 24}, zeros(720),
                         ForeignLayout::half_written);
       },
       {kExperts, "incomplete"}},
      {"wrong crc",
       [](P p) { set_integer(p, kMatrix, "crc32c", 7); },
       {kMatrix, "crc32c", "00000007", "damaged"}},
      {"flipped bit", [](P p) { flip_bit(p, kMatrix); }, {kMatrix, "crc32c", "damaged"}},
      {"flipped bit of the shared part",
       [](P p) { flip_bit(p, "/shared/embedding"); },
       {"/shared/embedding", "damaged"}},
      {"crc out of range",
       [](P p) { set_integer(p, kMatrix, "crc32c", -1); },
       {kMatrix, "crc32c", "32-bit", "-1"}},
      {"crc in words",
       [](P p) { set_fixed_string(p, kMatrix, "crc32c", "abc"); },
       {kMatrix, "crc32c", "integer"}},
      {"tokenizer of no kind",
       [](P p) { remove_attribute(p, "/tokenizer", "kind"); },
       {"kind", "/tokenizer"}},
      {"unknown tokenizer",
       [](P p) { set_fixed_string(p, "/tokenizer", "kind", "wordpiece"); },
       {"m.h5", "sentencepiece", "wordpiece"}},
      {"tokenizer without its model",
       [](P p) { set_fixed_string(p, "/tokenizer", "kind", "sentencepiece"); },
       {"m.h5", "/tokenizer/model", "missing"}},
      {"broken tokenizer model",
       [](P p) {
         set_fixed_string(p, "/tokenizer", "kind", "sentencepiece");
         replace_dataset(p, "/tokenizer/model", ForeignType::uint8, {4}, {1, 2, 3, 4});
       },
       {"m.h5", "not a sentencepiece model"}},
  };
}

TEST(BadFile, IsRefusedWithItsReason) {
  TempFolder folder;
  write_model(folder / "good.h5", small_config(), 3);
  load(folder / "good.h5");
  for (const BadFile& bad : bad_files()) {
    SCOPED_TRACE(bad.what);
    fs::remove_all(folder / "m.h5");
    fs::copy_file(folder / "good.h5", folder / "m.h5");
    bad.damage(folder / "m.h5");
    expect_words(message_of([&] { load(folder / "m.h5"); }), bad.words);
  }
}

// The model with int8 matrices; wk [12, 24] has scales [12, 1], experts/w_gate [3, 10, 24] has [3, 10, 1].
std::vector<BadFile> bad_int8_files() {
  using P = const std::string&;
  const std::string kScale = kMatrix + ".scale", kExpertScale = kExperts + ".scale";
  const auto replaced = [](const std::string& name, ForeignType type, std::vector<std::int64_t> shape,
                           ForeignLayout layout = ForeignLayout::contiguous) {
    std::size_t n = 1;
    for (const std::int64_t extent : shape) n *= static_cast<std::size_t>(extent);
    return [=](P p) { replace_dataset(p, name, type, shape, zeros(n), layout); };
  };
  const auto scales_of = [&](double last) {
    std::vector<double> values(12, 0.5);
    values.back() = last;
    return [=](P p) { replace_dataset(p, kScale, ForeignType::float16, {12, 1}, values); };
  };
  const std::string kNorm = "/tracks/01/layers/002/attn_norm", kRouter = "/tracks/00/layers/001/router";
  return {
      {"no scales", [=](P p) { remove_object(p, kScale); }, {"m.h5", kScale, "missing", kMatrix, "[12, 1]"}},
      {"no expert scales", [=](P p) { remove_object(p, kExpertScale); }, {kExpertScale, "missing"}},
      {"a group for the scales", [=](P p) { replace_by_group(p, kScale); }, {kScale, "dataset"}},
      {"scales of another shape",
       replaced(kScale, ForeignType::float16, {12, 2}),
       {kScale, "[12, 1]", "[12, 2]"}},
      {"flat scales", replaced(kScale, ForeignType::float16, {12}), {kScale, "[12, 1]", "[12]"}},
      {"scales of one expert",
       replaced(kExpertScale, ForeignType::float16, {10, 1}),
       {kExpertScale, "[3, 10, 1]", "[10, 1]"}},
      {"float32 scales",
       replaced(kScale, ForeignType::float32, {12, 1}),
       {kScale, "expected float16", "found float32"}},
      {"uint16 scales",
       replaced(kScale, ForeignType::uint16, {12, 1}),
       {kScale, "expected float16", "found uint16"}},
      {"scales never written",
       replaced(kScale, ForeignType::float16, {12, 1}, ForeignLayout::never_written),
       {kScale, "incomplete"}},
      {"int8 of another shape",
       replaced(kMatrix, ForeignType::int8, {12, 23}),
       {kMatrix, "[12, 24]", "[12, 23]"}},
      {"uint8 for int8", replaced(kMatrix, ForeignType::uint8, {12, 24}), {kMatrix, "int8", "found uint8"}},
      {"int8 norm", replaced(kNorm, ForeignType::int8, {24}), {kNorm, "bfloat16", "matrices", "found int8"}},
      {"int8 router", replaced(kRouter, ForeignType::int8, {3, 24}), {kRouter, "bfloat16", "found int8"}},
      {"int8 embedding",
       replaced("/shared/embedding", ForeignType::int8, {259, 24}),
       {"/shared/embedding", "bfloat16", "found int8"}},
      {"scale that is not a number", scales_of(NAN), {kScale, "row 11, group 0", "finite", "nan"}},
      {"infinite scale", scales_of(INFINITY), {kScale, "row 11, group 0", "finite", "inf"}},
      {"negative scale", scales_of(-0.25), {kScale, "row 11, group 0", "0 or more", "-0.25"}},
      {"flipped bit", [](P p) { flip_bit(p, kMatrix); }, {kMatrix + ":", "crc32c", "damaged"}},
      {"flipped bit of the scales", [=](P p) { flip_bit(p, kScale); }, {kScale, "crc32c", "damaged"}},
  };
}

TEST(BadInt8File, IsRefusedWithItsReason) {
  TempFolder folder;
  write_int8_model(folder / "good.h5", small_config(), 3);
  load(folder / "good.h5");
  for (const BadFile& bad : bad_int8_files()) {
    SCOPED_TRACE(bad.what);
    fs::remove_all(folder / "m.h5");
    fs::copy_file(folder / "good.h5", folder / "m.h5");
    bad.damage(folder / "m.h5");
    expect_words(message_of([&] { load(folder / "m.h5"); }), bad.words);
  }
}

// What ends between the check of the file and the reading of a tensor.
TEST(BadFile, TruncatedWhileItIsOpen) {
  TempFolder folder;
  write_model(folder / "m.h5", small_config(), 3);
  const ModelFile file(folder / "m.h5");
  const TensorSpec spec = track_tensors(file.config(), 1).back();
  const StoredTensor stored = file.stat(spec);
  fs::resize_file(folder / "m.h5", *stored.offset + stored.bytes - 1);
  expect_words(message_of([&] { read_tensor(file, stored); }), {"m.h5", spec.path, "truncated"});
}

std::vector<BadFile> bad_shards() {
  using P = const std::string&;
  return {
      {"missing", [](P p) { fs::remove(p); }, {"m.h5", "/tracks/01", "m.track01.h5", "missing"}},
      {"text", [](P p) { overwrite(p, "hello"); }, {"m.track01.h5", "not an HDF5 file"}},
      {"truncated", [](P p) { shorten(p, 100); }, {"m.track01.h5", "truncated"}},
      {"flipped bit", [](P p) { flip_bit(p, kMatrix); }, {"m.track01.h5", kMatrix, "damaged"}},
      {"dataset missing", [](P p) { remove_object(p, kMatrix); }, {"m.track01.h5", kMatrix, "missing"}},
      {"group missing", [](P p) { remove_object(p, "/tracks"); }, {"m.track01.h5", "/tracks/01/", "missing"}},
  };
}

TEST(BadShard, IsRefusedWithItsReason) {
  for (const BadFile& bad : bad_shards()) {
    SCOPED_TRACE(bad.what);
    TempFolder folder;
    write_model(folder / "m.h5", small_config(), 3, DType::bfloat16, true);
    bad.damage(folder / "m.track01.h5");
    expect_words(message_of([&] { load(folder / "m.h5"); }), bad.words);
    // Who needs the other track alone is not disturbed.
    const auto backend = make_cpu_backend({.threads = 1});
    EXPECT_NO_THROW(load_shard(ModelFile(folder / "m.h5"), 0, 1, *backend));
  }
}

// All is checked before anything is taken into memory.
TEST(BadFile, NothingIsLoadedFromAFileThatDoesNotFit) {
  TempFolder folder;
  write_model(folder / "m.h5", small_config(), 3);
  remove_object(folder / "m.h5", "/tracks/01/layers/002/ffn_post_norm");
  const auto backend = make_cpu_backend({.threads = 1});
  const ModelFile file(folder / "m.h5");
  expect_words(message_of([&] { load_shard(file, 0, 2, *backend); }), {"ffn_post_norm"});
  EXPECT_EQ(file.bytes_read(), 0u);
  EXPECT_EQ(backend->weight_bytes(), 0u);
}

}  // namespace
}  // namespace ptrt
