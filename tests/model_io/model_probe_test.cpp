#include "model_io/file/model_probe.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <filesystem>
#include <numeric>
#include <span>

#include "h5_edit.h"
#include "model_fixture.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

std::string probe(const std::string& path, ProbeLimits limits = {}) {
  return message_of([&] { ModelProbe(path, false, limits).finish(); });
}

TEST(ModelProbe, PassesSoundFiles) {
  for (const bool split : {false, true}) {
    TempFolder folder;
    write_model(folder / "m.h5", small_config(), 3, DType::bfloat16, split);
    EXPECT_EQ(probe(folder / "m.h5"), "");
  }
}

TEST(ModelProbe, TellsWhatOpeningWouldTell) {
  TempFolder folder;
  EXPECT_EQ(probe(folder / "none.h5"), message_of([&] { ModelFile(folder / "none.h5"); }));
  write_model(folder / "m.h5", small_config(), 3);
  const std::string last = "/tracks/01/layers/002/wk";
  remove_object(folder / "m.h5", last);
  expect_words(probe(folder / "m.h5"), {"m.h5", last, "missing"});
}

// A host may have the files of its own tracks alone.
TEST(ModelProbe, LeavesOutMissingFiles) {
  TempFolder folder;
  write_model(folder / "m.h5", small_config(), 3, DType::bfloat16, true);
  fs::remove(folder / "m.track01.h5");
  EXPECT_EQ(probe(folder / "m.h5"), "");
  remove_object(folder / "m.track00.h5", "/tracks/00/layers/000/wk");
  expect_words(probe(folder / "m.h5"), {"m.track00.h5", "/tracks/00/layers/000/wk"});
}

// On these the HDF5 library crashes or loops for ever.
TEST(ModelProbe, SurvivesDamagedFiles) {
  for (const auto& entry : fs::directory_iterator(PTRT_DAMAGED_HDF5)) {
    const std::string message = probe(entry.path().string(), {.cpu_seconds = 0.5});
    expect_words(message, {entry.path().filename().string()});
  }
}

std::size_t elements_of(const TensorSpec& spec) {
  std::size_t count = 1;
  for (const std::int64_t extent : spec.shape) count *= static_cast<std::size_t>(extent);
  return count;
}

std::vector<std::byte> content_of(const ModelFile& file, const TensorSpec& spec) {
  const StoredTensor stored = file.stat(spec);
  std::vector<std::byte> content(stored.bytes);
  file.open(stored)->read(0, content);
  return content;
}

TEST(ModelProbe, ReadsForItsOwner) {
  for (const bool split : {false, true}) {
    TempFolder folder;
    const std::string path = folder / "m.h5";
    write_model(path, small_config(), 3, DType::bfloat16, split);
    const ModelMetadata known = ModelProbe(path, false).finish();
    const ModelFile told(path, false, &known), read(path);
    EXPECT_EQ(to_json(told.config()), to_json(read.config()));
    EXPECT_EQ(told.tokenizer().kind, read.tokenizer().kind);
    EXPECT_EQ(told.tokenizer().model, read.tokenizer().model);
    for (std::int64_t track = 0; track < read.config().tracks; ++track)
      EXPECT_EQ(told.track_file(track), read.track_file(track));
    for (const TensorSpec& spec : model_tensors(read.config())) {
      EXPECT_EQ(content_of(told, spec), content_of(read, spec)) << spec.path;
      EXPECT_EQ(told.stat(spec).crc32c, read.stat(spec).crc32c) << spec.path;
    }
    EXPECT_EQ(told.files_opened(), read.files_opened());
  }
}

// What is not one run of bytes only the library can read.
TEST(ModelProbe, LeavesChunksToTheLibrary) {
  TempFolder folder;
  const std::string path = folder / "m.h5";
  write_model(path, small_config(), 3);
  const TensorSpec spec = shared_tensors(small_config()).back();
  std::vector<double> values(elements_of(spec));
  std::iota(values.begin(), values.end(), 1.0);
  replace_dataset(path, spec.path, ForeignType::float32, spec.shape, values,
                  ForeignLayout::compressed_chunks);
  const ModelMetadata known = ModelProbe(path, false).finish();
  const ModelFile told(path, false, &known);
  EXPECT_FALSE(told.stat(spec).offset.has_value());
  const std::vector<float> wanted(values.begin(), values.end());
  const auto bytes = std::as_bytes(std::span(wanted));
  EXPECT_EQ(content_of(told, spec), std::vector<std::byte>(bytes.begin(), bytes.end()));
}

TEST(ModelProbe, NoticesAnotherFileInItsPlace) {
  TempFolder folder;
  const std::string path = folder / "m.h5";
  write_model(path, small_config(), 3);
  const ModelMetadata known = ModelProbe(path, false).finish();
  write_model(folder / "other.h5", small_config(), 4);
  fs::rename(folder / "other.h5", path);
  const ModelFile told(path, false, &known);
  expect_words(message_of([&] { told.stat(shared_tensors(small_config()).front()); }),
               {path, "took its place"});
}

TEST(ModelProbe, RefusesBytesThatAreNoMetadata) {
  TempFolder folder;
  const std::string path = folder / "m.h5";
  write_model(path, small_config(), 3);
  const std::string bytes = to_bytes(ModelProbe(path, false).finish());
  EXPECT_EQ(to_bytes(metadata_from_bytes(bytes, path)), bytes);
  for (const std::string& damaged : {std::string(), std::string("x"), bytes.substr(0, bytes.size() / 2)})
    expect_words(message_of([&] { metadata_from_bytes(damaged, path); }), {path, "makes no sense"});
}

TEST(ModelProbe, EndsWithItsOwner) {
  TempFolder folder;
  write_model(folder / "m.h5", small_config(), 3);
  for (int i = 0; i < 20; ++i) ModelProbe(folder / "m.h5", false);  // not waited for
  EXPECT_EQ(::wait(nullptr), -1);                                   // no child is left
}

}  // namespace
}  // namespace ptrt
