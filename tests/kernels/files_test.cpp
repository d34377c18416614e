#include "kernels/base/files.h"

#include <gtest/gtest.h>

#include <fstream>

#include "kernels/base/error.h"
#include "temp_folder.h"

namespace ptrt {
namespace {

struct Files : testing::Test {
  TempFolder folder;
};

TEST_F(Files, ReadsAnySize) {
  for (const std::size_t bytes : {0, 1, 65536, 65537, 300000}) {
    std::string text(bytes, '\0');
    for (std::size_t i = 0; i < bytes; i++) text[i] = static_cast<char>(i * 31);
    std::ofstream(folder / "a", std::ios::binary) << text;
    EXPECT_EQ(read_text_file(folder / "a", "the text"), text) << bytes;
    EXPECT_EQ(file_bytes(folder / "a"), bytes);
  }
  EXPECT_FALSE(read_text_file("/proc/self/status", "the status").empty()) << "its size is told as 0";
}

TEST_F(Files, SaysWhatCannotBeRead) {
  for (const std::string& path : {folder / "none", folder.path(), std::string()}) {
    try {
      read_text_file(path, "the text");
      ADD_FAILURE() << path;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::bad_input);
      EXPECT_EQ(std::string(e.what()).find("cannot read the text " + path + ": "), 0u) << e.what();
    }
  }
  EXPECT_THROW(file_bytes(folder / "none"), Error);
}

}  // namespace
}  // namespace ptrt
