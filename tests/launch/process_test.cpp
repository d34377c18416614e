#include "launch/job/process.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace ptrt {
namespace {

// Rank 0 of a job whose other ranks give these answers to every all_gather.
class AnsweringJob : public JobComm {
 public:
  explicit AnsweringJob(std::vector<std::string> others) : others_(std::move(others)) {}
  std::vector<std::string> all_gather(const std::string& mine) override {
    std::vector<std::string> all{mine};
    all.insert(all.end(), others_.begin(), others_.end());
    return all;
  }

  int size() const override { return static_cast<int>(others_.size()) + 1; }
  int rank() const override { return 0; }
  int host_ranks() const override { return size(); }
  int host_rank() const override { return 0; }
  std::string host() const override { return "here"; }
  void barrier() override {}
  bool barrier_within(double) override { return true; }
  std::string broadcast(const std::string& text) override { return text; }
  std::vector<std::string> gather(const std::string& mine) override { return all_gather(mine); }
  std::vector<std::string> all_gather_on_host(const std::string& mine) override { return all_gather(mine); }
  std::unique_ptr<TrackComm> split(int, Waiting) override { return nullptr; }
  bool post(const std::string&, Post, const std::function<bool()>&) override { return true; }
  void send(int, std::string) override {}
  std::optional<Mail> poll_post() override { return std::nullopt; }
  [[noreturn]] void abort(int exit_code) override { std::exit(exit_code); }

 private:
  std::vector<std::string> others_;
};

enum class Colour : std::uint8_t { red, green };

TEST(Agreement, AValueHoldsWhereEveryRankHasIt) {
  AnsweringJob same({"1", "1"}), other({"1", "0"}), alone({});
  EXPECT_EQ(all_equal_or(same, Colour::green, Colour::red), Colour::green);
  EXPECT_EQ(all_equal_or(other, Colour::green, Colour::red), Colour::red);
  EXPECT_EQ(all_equal_or(alone, Colour::green, Colour::red), Colour::green);
  EXPECT_TRUE(all_equal(same, "1"));
  EXPECT_FALSE(all_equal(same, "0"));
}

TEST(Agreement, SmallestOfAllRanks) {
  AnsweringJob job({"70", "9"});
  EXPECT_EQ(all_min(job, 100), 9);
  EXPECT_EQ(all_min(job, 8), 8);
}

TEST(Agreement, FirstText) {
  AnsweringJob none({"", ""}), some({"", "third"});
  EXPECT_EQ(first_nonempty(none, ""), "");
  EXPECT_EQ(first_nonempty(some, ""), "third");
  EXPECT_EQ(first_nonempty(some, "mine"), "mine");
}

TEST(Stage, OtherRanksFailTogether) {
  AnsweringJob fine({"0"}), failing({"2"});
  EXPECT_NO_THROW(all_or_none(fine, [] {}));
  EXPECT_THROW(all_or_none(failing, [] {}), OtherRankFailed);
  EXPECT_THROW(all_or_none(failing, [] { throw_bad_input("no"); }), AgreedError);
}

}  // namespace
}  // namespace ptrt
