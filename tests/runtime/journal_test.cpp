#include "runtime/journal/journal.h"

#include <memory>

#include "journal_fixture.h"
#include "runtime/journal/finished_run.h"

namespace ptrt::testing {
namespace {

TEST_F(JournalTest, PublishesInRequestOrder) {
  Journal journal(results_, "d", 3, false);
  journal.append(2, R"({"id":"c"})");
  journal.append(0, R"({"id":"a"})");
  EXPECT_FALSE(fs::exists(results_)) << "results appear only when whole";
  EXPECT_THROW(journal.publish(), Error);
  journal.append(1, R"({"id":"b"})");
  journal.publish();
  EXPECT_EQ(read(results_), kResults);
  EXPECT_FALSE(fs::exists(partial_));
}

TEST_F(JournalTest, PublishesATextOfItsResults) {
  {
    Journal journal(results_, "d", 3, false);
    journal.append(2, R"({"id":"c"})");
    journal.append(0, R"({"id":"a"})");
    EXPECT_THROW(journal.publish("too early"), Error);
  }
  Journal journal(results_, "d", 3, true);
  EXPECT_EQ(journal.result(2), R"({"id":"c"})");
  journal.append(1, R"({"id":"b"})");
  EXPECT_EQ(journal.result(1), R"({"id":"b"})");
  journal.publish("all three\n");
  EXPECT_EQ(read(results_), "all three\n");
  EXPECT_FALSE(fs::exists(partial_));
  EXPECT_TRUE(is_finished(results_, "d", 3));
  EXPECT_THROW(is_finished(results_, "other", 3), Error);
}

TEST_F(JournalTest, ResultsAppendedTogetherAreAsThoseOneByOne) {
  const std::string expected = two_of_three();
  fs::remove(partial_);
  Journal journal(results_, "d", 3, false);
  const std::string a = R"({"id":"a"})", b = R"({"id":"b"})";
  journal.append(std::vector<Journal::Result>{{1, b}, {0, a}});
  EXPECT_EQ(read(partial_), expected);
  EXPECT_EQ(journal.count(), 2);
  EXPECT_EQ(journal.result(0), a);
  EXPECT_EQ(journal.result(1), b);
}

// A result that may be another one today is not there for a resume, and is followed by its new one.
TEST_F(JournalTest, SomeResultsAreAskedForAgain) {
  const auto again = [](std::string_view result) {
    return result.find("too large") != std::string_view::npos;
  };
  for (int i = 0; i < 3; i++) {
    Journal journal(results_, "d", 3, i > 0, {.runs_again = again});
    EXPECT_EQ(journal.count(), i == 0 ? 0 : 1);
    EXPECT_EQ(journal.has(1), i > 0);
    EXPECT_FALSE(journal.has(2));
    if (i == 0) journal.append(1, R"({"id":"b"})");
    if (i < 2) journal.append(2, R"({"error":"too large"})");
    if (i < 2) continue;
    journal.append(0, R"({"id":"a"})");
    journal.append(2, R"({"id":"c"})");
    journal.publish([](FinishedRun& run) { run.kv_tokens = 64; });
  }
  EXPECT_EQ(read(results_), kResults);
  EXPECT_EQ(read_finished(results_)->kv_tokens, 64);
  EXPECT_TRUE(is_finished(results_, "d", 3, 64));
  EXPECT_TRUE(is_finished(results_, "d", 3, 48));
  EXPECT_THROW(is_finished(results_, "d", 3, 80), Error) << "with more pages there may be other results";
}

TEST_F(JournalTest, HasTheDocumentedText) {
  EXPECT_EQ(two_of_three(),
            "{\"ptrt_journal\":2,\"digest\":\"d\",\"requests\":3,\"crc32c\":\"68c30ef9\"}\n"
            "{\"line\":1,\"crc32c\":\"855c5f9a\",\"result\":{\"id\":\"b\"}}\n"
            "{\"line\":0,\"crc32c\":\"5e034bd9\",\"result\":{\"id\":\"a\"}}\n");
}

TEST_F(JournalTest, ContinuesAndDropsATornLine) {
  const std::string whole = two_of_three();
  const std::size_t last = whole.rfind("{\"line\"");
  for (std::size_t end = last; end < whole.size(); end++) {
    write(partial_, whole.substr(0, end));
    Journal journal(results_, "d", 3, true);
    EXPECT_EQ(journal.count(), 1);
    EXPECT_TRUE(journal.has(1));
    EXPECT_FALSE(journal.has(0));
    EXPECT_EQ(read(partial_), whole.substr(0, last));
    finish(journal);
    journal.publish();
    EXPECT_EQ(read(results_), kResults);
  }
}

TEST_F(JournalTest, TornInItsFirstLineStartsAnew) {
  const std::string whole = two_of_three();
  const std::string header = whole.substr(0, whole.find('\n'));
  for (std::size_t end = 0; end <= header.size(); end++) {
    write(partial_, header.substr(0, end));
    EXPECT_EQ(Journal(results_, "d", 3, true).count(), 0);
    EXPECT_EQ(read(partial_), header + "\n");
  }
}

TEST_F(JournalTest, RefusesWhatIsNotItsOwn) {
  const std::string whole = two_of_three();
  EXPECT_THROW(Journal(results_, "d", 3, false), Error) << "an earlier journal without resume";
  EXPECT_THROW(Journal(results_, "other", 3, true), Error);
  EXPECT_THROW(Journal(results_, "d", 4, true), Error);
  EXPECT_EQ(read(partial_), whole);
  expect_refused(whole + "no json\n", "line 4");
  expect_refused("{\"ptrt_journal\":7}\n", "newer version");
  expect_refused(
      "{\"ptrt_journal\":1,\"digest\":\"d\",\"requests\":3}\n{\"line\":1,\"result\":{\"id\":\"b\"}}\n",
      "older version");
  expect_refused("once upon a time", "no journal");
  expect_refused("once upon a time\n", "no journal");
}

// Also of the header, and bits that make a line break or take one away.
TEST_F(JournalTest, FindsEveryFlippedBit) {
  const std::string whole = two_of_three();
  for (std::size_t at = 0; at + 1 < whole.size(); at++)
    for (int bit = 0; bit < 8; bit++) {
      std::string changed = whole;
      changed[at] = static_cast<char>(changed[at] ^ (1 << bit));
      expect_refused(changed, "");
    }
}

TEST_F(JournalTest, FindsEveryByteThatIsGoneOrNew) {
  const std::string whole = two_of_three();
  for (std::size_t at = 0; at + 1 < whole.size(); at++) {
    std::string changed = whole;
    expect_refused(changed.erase(at, 1), "");
    changed = whole;
    expect_refused(changed.insert(at, 1, whole[at] == ' ' ? '0' : ' '), "");
    changed = whole;
    expect_refused(changed.insert(at, 1, '\n'), "");
  }
}

TEST_F(JournalTest, FindsLinesThatAreOutOfPlace) {
  const std::string whole = two_of_three();
  const std::size_t first = whole.find('\n') + 1, second = whole.find('\n', first) + 1;
  const std::string header = whole.substr(0, first), b = whole.substr(first, second - first),
                    a = whole.substr(second);
  expect_refused(whole + b, "two results");
  expect_refused(header + header + b, "line 2");
  expect_refused(b + a, "no journal");
  std::string crlf;
  for (const char c : whole) crlf += c == '\n' ? "\r\n" : std::string(1, c);
  expect_refused(crlf, "line 1");
  expect_refused(header + std::string(40, '\0') + "\n" + a, "line 2");
  std::string swapped = whole;  // the two line numbers
  swapped[first + 8] = '0';
  swapped[second + 8] = '1';
  expect_refused(swapped, "line 2");
  fs::remove(partial_);
  { Journal(results_, "e", 3, false).append(0, R"({"id":"a"})"); }
  const std::string other = read(partial_);
  expect_refused(header + b + other.substr(other.find('\n') + 1), "line 3");
  expect_refused(other, "another run");
}

TEST_F(JournalTest, OneRunAtATime) {
  const Journal journal(results_, "d", 1, false);
  for (const bool resume : {false, true}) {
    const Outcome outcome = outcome_of([&] { Journal(results_, "d", 1, resume); });
    EXPECT_EQ(outcome.code, ExitCode::bad_input);
    EXPECT_NE(outcome.message.find("in use by a run that is still going"), std::string::npos)
        << outcome.message;
    EXPECT_EQ(outcome_of([&] { Journal::check_output(results_, resume); }).message, outcome.message);
  }
}

TEST_F(JournalTest, NeverAdvisesToRemoveWhatIsNoJournal) {
  write(partial_, "{\"id\":\"a\",\"prompt\":\"x\"}\n");
  const Outcome outcome = outcome_of([&] { Journal(results_, "d", 1, false); });
  EXPECT_EQ(outcome.code, ExitCode::bad_input);
  EXPECT_EQ(outcome.message.find("remove"), std::string::npos) << outcome.message;
  fs::remove(partial_);
  fs::create_symlink("elsewhere", partial_);
  EXPECT_EQ(outcome_of([&] { Journal(results_, "d", 1, true); }).code, ExitCode::bad_input);
  EXPECT_TRUE(fs::is_symlink(partial_));
}

TEST_F(JournalTest, FindsThatAnotherProgramMeddled) {
  const auto resized = [&](std::uintmax_t bytes) { return [&, bytes] { fs::resize_file(partial_, bytes); }; };
  EXPECT_NE(published_after(resized(0)).find("changed by another program"), std::string::npos);
  EXPECT_NE(published_after(resized(80)).find("changed by another program"), std::string::npos);
  EXPECT_NE(published_after([&] {
              const std::uintmax_t size = fs::file_size(partial_);
              fs::resize_file(partial_, 80);
              fs::resize_file(partial_, size);
            }).find("changed by another program"),
            std::string::npos)
      << "zeros";
  EXPECT_NE(published_after([&] { fs::remove(partial_); }).find("removed"), std::string::npos);
  EXPECT_NE(published_after([&] { fs::rename(partial_, folder_ / "kept"); }).find("renamed"),
            std::string::npos);
  EXPECT_NE(published_after([&] {
              fs::remove(partial_);
              write(partial_, "mine");
            }).find("replaced by another file"),
            std::string::npos);
}

TEST_F(JournalTest, AppendingNoticesToo) {
  Journal journal(results_, "d", 3, false);
  journal.append(1, R"({"id":"b"})");
  fs::resize_file(partial_, 10);
  EXPECT_EQ(outcome_of([&] { journal.append(0, "{}"); }).code, ExitCode::failure);
  EXPECT_EQ(fs::file_size(partial_), 10U) << "nothing is added to what is not ours";
  fs::remove(partial_);
  Journal other(results_, "d", 3, false);
  fs::remove(partial_);
  EXPECT_EQ(outcome_of([&] { other.append(0, "{}"); }).code, ExitCode::failure);
}

TEST_F(JournalTest, LeavesALinkAtTheResults) {
  fs::create_directories(folder_ / "far");
  write((folder_ / "far" / "r").string(), "old");
  fs::create_symlink("far/r", results_);
  Journal journal(results_, "d", 3, false);
  finish(journal);
  journal.publish();
  EXPECT_TRUE(fs::is_symlink(results_));
  EXPECT_EQ(read((folder_ / "far" / "r").string()), kResults);
}

TEST_F(JournalTest, ResumeWithoutAJournalStartsOne) {
  const Journal journal(results_, "d", 1, true);
  EXPECT_EQ(journal.count(), 0);
}

TEST_F(JournalTest, OutputPathsThatCannotWork) {
  EXPECT_THROW(Journal::check_output((folder_ / "nowhere" / "r.jsonl").string(), false), Error);
  EXPECT_THROW(Journal::check_output(folder_.string(), false), Error);
  EXPECT_NO_THROW(Journal::check_output(results_, false));
}

TEST_F(JournalTest, LongerThanOnePiece) {
  constexpr std::int64_t kLines = 3000;
  const std::string filler(1000, 'x');
  const auto result = [&](std::int64_t i) { return fmt::format("{{\"id\":{},\"text\":\"{}\"}}", i, filler); };
  {
    Journal journal(results_, "d", kLines, false);
    for (std::int64_t i = kLines - 1; i > 0; i--) journal.append(i, result(i));
  }
  Journal journal(results_, "d", kLines, true);
  EXPECT_EQ(journal.count(), kLines - 1);
  journal.append(0, result(0));
  journal.publish();
  std::string all;
  for (std::int64_t i = 0; i < kLines; i++) all += result(i) + "\n";
  EXPECT_EQ(read(results_), all);
  EXPECT_TRUE(is_finished(results_, "d", kLines));
}

}  // namespace
}  // namespace ptrt::testing
