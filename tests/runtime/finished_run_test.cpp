#include "runtime/journal/finished_run.h"

#include "journal_fixture.h"

namespace ptrt::testing {
namespace {

// What publish() leaves, and what --resume makes of it.
class FinishedRunTest : public JournalTest {
 protected:
  FinishedRunTest() {
    Journal journal(results_, "d", 3, false);
    finish(journal);
    journal.publish();
    done_ = results_ + ".done";
  }
  void expect_refused(const std::string& cause) const {
    const Outcome outcome = outcome_of([&] { is_finished(results_, "d", 3); });
    EXPECT_EQ(outcome.code, ExitCode::bad_input);
    EXPECT_NE(outcome.message.find(cause), std::string::npos) << outcome.message;
  }
  std::string done_;
};

TEST_F(FinishedRunTest, IsKnown) {
  EXPECT_TRUE(is_finished(results_, "d", 3));
  fs::remove(results_);
  EXPECT_FALSE(is_finished(results_, "d", 3)) << "no results: a new run";
}

TEST_F(FinishedRunTest, RefusesWhatItDoesNotKnow) {
  EXPECT_THROW(is_finished(results_, "e", 3), Error);
  EXPECT_THROW(is_finished(results_, "d", 4), Error);
  write(results_, "{\"id\":\"a\"}\n{\"id\":\"B\"}\n{\"id\":\"c\"}\n");
  expect_refused("changed after its run");
  write(results_, kResults + "\n");
  expect_refused("changed after its run");
  write(results_, kResults);
  EXPECT_TRUE(is_finished(results_, "d", 3));
  fs::remove(done_);
  expect_refused("neither its journal");
}

TEST_F(FinishedRunTest, FindsEveryChangeOfTheNote) {
  const std::string whole = read(done_);
  for (std::size_t at = 0; at < whole.size(); at++) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 4);
    write(done_, changed);
    expect_refused(done_);
    write(done_, whole.substr(0, at));
    expect_refused(done_);
  }
  write(done_, "");
  EXPECT_THROW(Journal::check_output(results_, false), Error) << "it would be replaced";
}

TEST_F(FinishedRunTest, SaysWhatAShardNeeded) {
  FinishedRun run = *read_finished(results_);
  EXPECT_FALSE(run.most_tokens) << "nor did older programs say it";
  for (const std::int64_t kv_tokens : {0, 64}) {
    run.kv_tokens = kv_tokens;
    run.most_tokens = 48;
    write_finished(results_, run);
    EXPECT_EQ(read_finished(results_), run);
    EXPECT_TRUE(is_finished(results_, "d", 3, 64));
  }
}

TEST_F(FinishedRunTest, IsReplacedBeforeNewResults) {
  Journal journal(results_, "e", 1, false);
  journal.append(0, "{}");
  EXPECT_TRUE(is_finished(results_, "d", 3)) << "as long as there are no new results";
  journal.publish();
  EXPECT_TRUE(is_finished(results_, "e", 1));
}

}  // namespace
}  // namespace ptrt::testing
