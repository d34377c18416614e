// A folder with a journal and results in it.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>

#include "kernels/base/error.h"
#include "runtime/journal/journal.h"

namespace ptrt::testing {

namespace fs = std::filesystem;

inline const std::string kResults = "{\"id\":\"a\"}\n{\"id\":\"b\"}\n{\"id\":\"c\"}\n";

// The status and the message of what `work` throws.
struct Outcome {
  ExitCode code = ExitCode::ok;
  std::string message;
};
inline Outcome outcome_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& e) {
    return {e.code(), e.what()};
  }
  return {};
}

class JournalTest : public ::testing::Test {
 protected:
  JournalTest() {
    folder_ = fs::temp_directory_path() / ("ptrt_journal_" + std::to_string(getpid()));
    fs::create_directories(folder_);
    results_ = (folder_ / "r.jsonl").string();
    partial_ = results_ + ".partial";
  }
  ~JournalTest() override { fs::remove_all(folder_); }

  static std::string read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
  }
  static void write(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
  }
  void append_raw(const std::string& text) const {
    std::ofstream(partial_, std::ios::app | std::ios::binary) << text;
  }
  // A journal with the results of requests 1 and 0, in this order.
  std::string two_of_three() const {
    fs::remove(partial_);
    Journal journal(results_, "d", 3, false);
    journal.append(1, R"({"id":"b"})");
    journal.append(0, R"({"id":"a"})");
    return read(partial_);
  }
  // Resuming from such a file: bad input that names file and cause, and the file as it was.
  void expect_refused(const std::string& journal, const std::string& cause) const {
    write(partial_, journal);
    const Outcome outcome = outcome_of([&] { Journal(results_, "d", 3, true); });
    EXPECT_EQ(outcome.code, ExitCode::bad_input) << journal;
    EXPECT_NE(outcome.message.find(partial_), std::string::npos) << outcome.message;
    EXPECT_NE(outcome.message.find(cause), std::string::npos) << outcome.message << "\n" << journal;
    EXPECT_EQ(read(partial_), journal);
  }
  static void finish(Journal& journal) {
    if (!journal.has(1)) journal.append(1, R"({"id":"b"})");
    if (!journal.has(0)) journal.append(0, R"({"id":"a"})");
    journal.append(2, R"({"id":"c"})");
  }
  // What publish() says after `meddle`; there are no results, and the journal's name is left alone.
  std::string published_after(const std::function<void()>& meddle) const {
    Journal journal(results_, "d", 3, false);
    finish(journal);
    meddle();
    const std::string before = read(partial_);
    const Outcome outcome = outcome_of([&] { journal.publish(); });
    EXPECT_EQ(outcome.code, ExitCode::failure);
    EXPECT_FALSE(fs::exists(results_));
    EXPECT_EQ(read(partial_), before);
    for (const auto& entry : fs::directory_iterator(folder_))
      EXPECT_NE(entry.path().extension(), ".tmp") << entry.path();
    fs::remove(partial_);
    return outcome.message;
  }

  fs::path folder_;
  std::string results_, partial_;
};

}  // namespace ptrt::testing
