#include "kernels/base/output_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <new>
#include <sstream>

#include "kernels/base/error.h"
#include "temp_folder.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

class OutputFileTest : public testing::Test {
 protected:
  std::string path(const std::string& name) const { return folder_ / name; }
  std::string content(const std::string& name) const {
    std::ifstream in(folder_ / name);
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
  }
  void put(const std::string& name, const std::string& text) const { std::ofstream(folder_ / name) << text; }
  std::size_t files() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()));
  }

  TempFolder folder_;
};

TEST_F(OutputFileTest, AppearsWhenPublished) {
  put("a", "old");
  {
    OutputFile file(path("a"));
    file.write("new");
    EXPECT_EQ(content("a"), "old");
    file.publish();
  }
  EXPECT_EQ(content("a"), "new");
  EXPECT_EQ(files(), 1u);
}

TEST_F(OutputFileTest, LeavesNothingWithoutPublish) {
  put("a", "old");
  { OutputFile(path("a")).write("new"); }
  EXPECT_EQ(content("a"), "old");
  EXPECT_EQ(files(), 1u);
}

TEST_F(OutputFileTest, TemporaryNamesAreNew) {
  const std::string one = create_temporary_beside(path("a")), two = create_temporary_beside(path("a"));
  EXPECT_NE(one, two);
  EXPECT_TRUE(fs::exists(one) && fs::exists(two));
}

TEST_F(OutputFileTest, KeepsASymbolicLink) {
  put("target", "old");
  fs::create_symlink(path("target"), path("link"));
  OutputFile file(path("link"));
  file.write("new");
  file.publish();
  EXPECT_TRUE(fs::is_symlink(path("link")));
  EXPECT_EQ(content("target"), "new");
}

TEST_F(OutputFileTest, WritesDevicesDirectly) {
  OutputFile file("/dev/null");
  file.write("text");
  file.publish();
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST_F(OutputFileTest, FullDevice) {
  OutputFile file("/dev/full");
  EXPECT_THROW(file.write("text"), Error);
}

TEST_F(OutputFileTest, NoSuchFolder) {
  EXPECT_THROW(OutputFile(path("none/a")), Error);
  EXPECT_THROW(OutputFile{folder_.path()}, Error) << "a folder is no file";
  EXPECT_THROW(OutputFile(""), Error);
}

TEST_F(OutputFileTest, WritableOrNot) {
  put("a", "old");
  for (const std::string& good :
       {path("a"), path("new"), std::string("/dev/null"), std::string("/dev/stdout")})
    EXPECT_NO_THROW(check_writable(good)) << good;
  for (const std::string& bad : {path("none/a"), folder_.path(), path("a/b"), path("new/"), std::string()})
    EXPECT_THROW(check_writable(bad), Error) << bad;
  EXPECT_EQ(content("a"), "old");
  EXPECT_EQ(files(), 1u);
}

TEST_F(OutputFileTest, CreatesWhatALinkPointsAt) {
  fs::create_symlink("later/target", path("link"));
  fs::create_directory(path("later"));
  EXPECT_EQ(behind_links(path("link")), path("later/target"));
  EXPECT_TRUE(is_same_file(path("link"), path("later/target")));
  OutputFile file(path("link"));
  file.write("new");
  file.publish();
  EXPECT_TRUE(fs::is_symlink(path("link")));
  EXPECT_EQ(content("later/target"), "new");
}

TEST_F(OutputFileTest, TakesTheLongestName) {
  const std::string longest(255, 'x');
  OutputFile file(path(longest));
  file.write("text");
  file.publish();
  EXPECT_EQ(content(longest), "text");
}

// Where output is redirected to a file, what is written to /dev/stdout stands after what was printed.
TEST_F(OutputFileTest, SharesADescriptor) {
  std::FILE* const out = std::fopen(path("out").c_str(), "w");
  std::fputs("printed ", out);
  OutputFile file("/proc/self/fd/" + std::to_string(fileno(out)));
  file.write("written ");
  file.publish();
  std::fputs("printed", out);
  std::fclose(out);
  EXPECT_EQ(content("out"), "printed written printed");
}

TEST_F(OutputFileTest, OneFileByAnyName) {
  put("a", "text");
  fs::create_hard_link(path("a"), path("hard"));
  fs::create_symlink(path("a"), path("soft"));
  put("other", "text");
  EXPECT_TRUE(is_same_file(path("a"), path("hard")));
  EXPECT_TRUE(is_same_file(path("a"), path("soft")));
  EXPECT_TRUE(is_same_file(path("a"), path("./a")));
  EXPECT_FALSE(is_same_file(path("a"), path("other")));
  EXPECT_FALSE(is_same_file(path("a"), path("none")));
  EXPECT_TRUE(is_same_file(path("none"), path("./none"))) << "neither exists yet";
  EXPECT_TRUE(is_same_file("no-such-file", "./no-such-file"));
  EXPECT_FALSE(is_same_file("/dev/null", "/dev/null"));
}

TEST_F(OutputFileTest, OutputsAreNoInputs) {
  put("in", "text");
  const NamedFile in{"the requests", path("in")}, out{"-o", path("./in")}, other{"--json", path("x")};
  EXPECT_THROW(check_outputs(std::vector{out}, std::vector{in}), Error);
  EXPECT_THROW(check_outputs(std::vector{other, NamedFile{"--csv", path("./x")}}, std::vector{in}), Error);
  EXPECT_NO_THROW(check_outputs(std::vector{other}, std::vector{in}));
}

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (...) {
    return current_error().what();
  }
  return "";
}

TEST(CurrentError, SaysWhatRanOut) {
  EXPECT_EQ(message_of([] { throw std::bad_alloc(); }), "out of memory: the system gave no more");
  EXPECT_EQ(message_of([] { static_cast<void>(fs::file_size("/no/such")); }),
            "/no/such: No such file or directory");
  EXPECT_EQ(message_of([] { std::string().reserve(~std::size_t{0}); }),
            "out of memory: a size is beyond what memory can hold");
  EXPECT_EQ(message_of([] { throw std::runtime_error("[json.exception.type_error.302] of another type"); }),
            "internal error: of another type");
  EXPECT_EQ(message_of([] { throw_bad_input("bad {}", 1); }), "bad 1");
}

}  // namespace
}  // namespace ptrt
