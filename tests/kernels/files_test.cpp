#include "kernels/base/files.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

class Files : public testing::Test {
 protected:
  Files() {
    std::string name = (fs::temp_directory_path() / "ptrt-files-XXXXXX").string();
    folder_ = mkdtemp(name.data());
  }
  ~Files() override { fs::remove_all(folder_); }
  std::string folder_;
};

TEST_F(Files, ReadsAnySize) {
  for (const std::size_t bytes : {0, 1, 65536, 65537, 300000}) {
    std::string text(bytes, '\0');
    for (std::size_t i = 0; i < bytes; i++) text[i] = static_cast<char>(i * 31);
    std::ofstream(folder_ + "/a", std::ios::binary) << text;
    EXPECT_EQ(read_text_file(folder_ + "/a", "the text"), text) << bytes;
    EXPECT_EQ(file_bytes(folder_ + "/a"), bytes);
  }
  EXPECT_FALSE(read_text_file("/proc/self/status", "the status").empty()) << "its size is told as 0";
}

TEST_F(Files, SaysWhatCannotBeRead) {
  for (const std::string& path : {folder_ + "/none", folder_, std::string()}) {
    try {
      read_text_file(path, "the text");
      ADD_FAILURE() << path;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::bad_input);
      EXPECT_EQ(std::string(e.what()).find("cannot read the text " + path + ": "), 0u) << e.what();
    }
  }
  EXPECT_THROW(file_bytes(folder_ + "/none"), Error);
}

}  // namespace
}  // namespace ptrt
