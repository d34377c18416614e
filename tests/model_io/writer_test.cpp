// What the writer leaves behind when it succeeds and when it does not.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <set>

#include "model_fixture.h"
#include "model_io/file/model_file.h"
#include "model_io/file/model_writer.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

std::set<std::string> files_in(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

// Runs `action` in a process of its own; its exit status.
template <typename Action>
int in_child(const Action& action) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(action());
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(ModelWriter, FilesAppearWhenWhole) {
  for (const bool split : {false, true}) {
    TempFolder folder;
    const ModelConfig config = small_config();
    ModelWriter writer(folder / "m.h5", config, split);
    for (const TensorSpec& spec : all_tensors(config)) {
      write_tensor(writer, config, spec, 1, DType::float32);
      EXPECT_EQ(files_in(folder.path()).count("m.h5"), 0u);
    }
    writer.commit();
    const std::set<std::string> names =
        split ? std::set<std::string>{"m.h5", "m.track00.h5", "m.track01.h5"} : std::set<std::string>{"m.h5"};
    EXPECT_EQ(files_in(folder.path()), names);
    EXPECT_EQ(writer.files().size(), names.size());
  }
}

TEST(ModelWriter, LeavesNothingUnlessCommitted) {
  for (const bool split : {false, true}) {
    TempFolder folder;
    std::ofstream(folder / "m.h5") << "what was there before";
    const ModelConfig config = small_config();
    {
      ModelWriter writer(folder / "m.h5", config, split);
      write_tensor(writer, config, shared_tensors(config)[0], 1, DType::float32);
      expect_words(message_of([&] { writer.commit(); }, ExitCode::failure), {"was not written"});
    }
    EXPECT_EQ(files_in(folder.path()), (std::set<std::string>{"m.h5"}));
    EXPECT_EQ(fs::file_size(folder / "m.h5"), 21u);
  }
}

TEST(ModelWriter, RefusesTensorsThatTheConfigDoesNotHave) {
  TempFolder folder;
  const ModelConfig config = small_config();
  ModelWriter writer(folder / "m.h5", config, false);
  const TensorSpec stranger{"/shared/bias", {3}, WeightRole::vector};
  EXPECT_THROW(write_tensor(writer, config, stranger, 1, DType::float32), Error);
  write_tensor(writer, config, shared_tensors(config)[0], 1, DType::float32);
  EXPECT_THROW(write_tensor(writer, config, shared_tensors(config)[0], 1, DType::float32), Error);
}

TEST(ModelWriter, UnwritablePathsAreBadInput) {
  TempFolder folder;
  const auto open = [](const std::string& path) {
    return message_of([&] { ModelWriter(path, small_config(), true); });
  };
  expect_words(open(folder / "none/m.h5"), {"none/m.h5", "No such file"});
  expect_words(open(folder.path()), {folder.path(), "directory"});
  EXPECT_TRUE(files_in(folder.path()).empty());
}

// A limit on file sizes stands for a full disk; both fail in write(2).
TEST(ModelWriter, FullDiskIsAFailureThatLeavesNothing) {
  for (const rlim_t limit : {std::size_t{1000}, std::size_t{5000}, std::size_t{60000}, std::size_t{120000}}) {
    TempFolder folder;
    const int status = in_child([&] {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit bound{limit, limit};
      ::setrlimit(RLIMIT_FSIZE, &bound);
      const std::string message =
          message_of([&] { write_model(folder / "m.h5", small_config(), 1); }, ExitCode::failure);
      return message.find("File too large") != std::string::npos ? 0 : 1;
    });
    EXPECT_EQ(status, 0) << limit;
    EXPECT_TRUE(files_in(folder.path()).empty()) << limit;
  }
}

std::size_t peak_resident_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (std::size_t value = 0; word == "VmHWM:" && status >> value) return value;
  return 0;
}

// 80 MB of weights, 52 MB of them in a single tensor, through a few MB of memory.
TEST(ModelWriter, StreamsTensorsLargerThanItsMemory) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer holds on to memory";
#endif
  TempFolder folder;
  const ModelConfig config = small_config(
      {{"vocab_size", 100000}, {"hidden_size", 130}, {"tie_embeddings", true}, {"ffn_size", 10000}});
  const int status = in_child([&] {
    const std::size_t before = peak_resident_kib();
    write_model(folder / "m.h5", config, 1);
    return peak_resident_kib() - before < 24 * 1024 ? 0 : 1;
  });
  EXPECT_EQ(status, 0);
  EXPECT_GT(fs::file_size(folder / "m.h5"), 75'000'000u);
  const ModelFile file(folder / "m.h5");
  for (const TensorSpec& spec : all_tensors(config)) {
    const StoredTensor stored = file.stat(spec);
    const auto reader = file.open(stored);
    reader->content().scan([](std::size_t, std::span<const std::byte>) {});
    EXPECT_EQ(reader->content().crc32c(), stored.crc32c) << spec.path;
  }
}

TEST(ModelWriter, KeepsTheTokenizerModel) {
  TempFolder folder;
  const ModelConfig config = small_config();
  const TokenizerBlob blob{"huggingface", {'{', '}', 0, 255}, {}, "{{ messages }} ü\n"};
  {
    ModelWriter writer(folder / "m.h5", config, false);
    for (const TensorSpec& spec : all_tensors(config)) write_tensor(writer, config, spec, 1, DType::float16);
    writer.write_tokenizer(blob);
    writer.commit();
  }
  const TokenizerBlob found = ModelFile(folder / "m.h5").tokenizer();
  EXPECT_EQ(found.kind, blob.kind);
  EXPECT_EQ(found.model, blob.model);
  EXPECT_EQ(found.chat_template, blob.chat_template);
  EXPECT_EQ(found.file, folder / "m.h5");
}

}  // namespace
}  // namespace ptrt
