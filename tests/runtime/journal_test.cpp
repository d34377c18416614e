#include "runtime/serving/journal.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/base/error.h"

namespace fs = std::filesystem;

namespace ptrt {
namespace {

class JournalTest : public testing::Test {
 protected:
  JournalTest() {
    folder_ = fs::temp_directory_path() / ("ptrt_journal_" + std::to_string(getpid()));
    fs::create_directories(folder_);
    results_ = (folder_ / "r.jsonl").string();
  }
  ~JournalTest() override { fs::remove_all(folder_); }

  static std::string read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
  }
  void append_raw(const std::string& text) const {
    std::ofstream(results_ + ".partial", std::ios::app) << text;
  }

  fs::path folder_;
  std::string results_;
};

TEST_F(JournalTest, PublishesInRequestOrder) {
  Journal journal(results_, "d", 3, false);
  journal.append(2, R"({"id":"c"})");
  journal.append(0, R"({"id":"a"})");
  EXPECT_FALSE(fs::exists(results_)) << "results appear only when whole";
  EXPECT_THROW(journal.publish(), Error);
  journal.append(1, R"({"id":"b"})");
  journal.publish();
  EXPECT_EQ(read(results_), "{\"id\":\"a\"}\n{\"id\":\"b\"}\n{\"id\":\"c\"}\n");
  EXPECT_FALSE(fs::exists(results_ + ".partial"));
}

TEST_F(JournalTest, ContinuesAndDropsATornLine) {
  { Journal(results_, "d", 3, false).append(1, R"({"id":"b"})"); }
  append_raw(R"({"line":2,"result":{"id":"c)");
  {
    Journal journal(results_, "d", 3, true);
    EXPECT_EQ(journal.count(), 1);
    EXPECT_TRUE(journal.has(1));
    EXPECT_FALSE(journal.has(2));
    journal.append(2, R"({"id":"c"})");
  }
  Journal journal(results_, "d", 3, true);
  EXPECT_EQ(journal.count(), 2);
  journal.append(0, R"({"id":"a"})");
  journal.publish();
  EXPECT_EQ(read(results_), "{\"id\":\"a\"}\n{\"id\":\"b\"}\n{\"id\":\"c\"}\n");
}

TEST_F(JournalTest, RefusesWhatIsNotItsOwn) {
  { Journal(results_, "d", 3, false).append(1, R"({"id":"b"})"); }
  EXPECT_THROW(Journal(results_, "d", 3, false), Error) << "an earlier journal without resume";
  EXPECT_THROW(Journal(results_, "other", 3, true), Error);
  EXPECT_THROW(Journal(results_, "d", 4, true), Error);
  append_raw("no json\n");
  EXPECT_THROW(Journal(results_, "d", 3, true), Error) << "a damaged line that is not the torn last one";
  fs::remove(results_ + ".partial");
  append_raw("{\"ptrt_journal\":7}\n");
  EXPECT_THROW(Journal(results_, "d", 3, true), Error);
}

TEST_F(JournalTest, TornInItsFirstLineStartsAnew) {
  append_raw("{\"ptrt_jou");
  Journal journal(results_, "d", 1, true);
  EXPECT_EQ(journal.count(), 0);
  journal.append(0, "{}");
  journal.publish();
  EXPECT_EQ(read(results_), "{}\n");
}

TEST_F(JournalTest, OneRunAtATime) {
  const Journal journal(results_, "d", 1, false);
  EXPECT_THROW(Journal(results_, "d", 1, true), Error);
}

TEST_F(JournalTest, ResumeWithoutAJournalStartsOne) {
  Journal journal(results_, "d", 1, true);
  EXPECT_EQ(journal.count(), 0);
}

TEST_F(JournalTest, OutputPathsThatCannotWork) {
  EXPECT_THROW(Journal::check_output((folder_ / "nowhere" / "r.jsonl").string(), false), Error);
  EXPECT_THROW(Journal::check_output(folder_.string(), false), Error);
  EXPECT_NO_THROW(Journal::check_output(results_, false));
}

}  // namespace
}  // namespace ptrt
