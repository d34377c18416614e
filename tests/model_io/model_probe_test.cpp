#include "model_io/file/model_probe.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <filesystem>

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

TEST(ModelProbe, EndsWithItsOwner) {
  TempFolder folder;
  write_model(folder / "m.h5", small_config(), 3);
  for (int i = 0; i < 20; ++i) ModelProbe(folder / "m.h5", false);  // not waited for
  EXPECT_EQ(::wait(nullptr), -1);                                   // no child is left
}

}  // namespace
}  // namespace ptrt
