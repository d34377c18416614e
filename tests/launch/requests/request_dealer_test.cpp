// How requests are dealt to replicas, on a clock of the test's own.
#include "launch/jsonl/request_dealer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <thread>

namespace ptrt {
namespace {

using std::chrono::duration;
using Clock = RequestDealer::Clock;

StreamedLine line_of(std::int64_t number, std::int64_t tokens) {
  StreamedLine line{number, {}, {}};
  line.request.line = number;
  line.request.tokens = {1};
  line.request.max_tokens = tokens;
  if (tokens == 0) line.line.error = {"invalid_request", "no tokens"};
  return line;
}

// Results are stored, and signals looked at, between two calls.
TEST(RequestDealer, ReadsSlowLinesForABoundedTime) {
  for (const bool by_prefix : {false, true}) {
    std::int64_t read = 0;
    RequestDealer dealer(
        [&](StreamedLine& line) {
          std::this_thread::sleep_for(std::chrono::milliseconds(10));
          line = line_of(read++, 1);
          return Supply::line;
        },
        {.max_batch = 64, .by_prefix = by_prefix}, Clock::time_point());
    std::vector<StreamedLine> rejected;
    dealer.next(Clock::time_point(), rejected);
    EXPECT_GE(read, 1);
    EXPECT_LE(read, 6) << "50 ms of 640";
    std::int64_t dealt = 0;
    for (int call = 0; call < 200 && dealt < 10; call++)
      if (const auto deal = dealer.next(Clock::time_point(), rejected)) dealt += std::ssize(deal->requests);
    EXPECT_GE(dealt, 10);
  }
}

// Replicas that run up to `batch` requests at once, first come first served, a token of each a step.
class Simulation {
 public:
  Simulation(std::vector<std::int64_t> tokens, std::vector<double> step_s, std::int64_t batch,
             std::int64_t tail = 1024, bool known = true)
      : tokens_(std::move(tokens)), step_s_(std::move(step_s)), batch_(batch) {
    RequestDealer::Options options{.replicas = std::ssize(step_s_), .max_batch = batch, .tail = tail};
    if (known) options.requests = std::ssize(tokens_);
    dealer_.emplace(
        [this](StreamedLine& line) {
          if (read_ == std::ssize(tokens_)) return Supply::end;
          most_unread_ = std::max(most_unread_, read_ - dealt_);
          read_++;
          line = line_of(read_ - 1, tokens_[static_cast<std::size_t>(read_ - 1)]);
          return Supply::line;
        },
        options, Clock::time_point());
    replicas_.resize(step_s_.size());
    next_step_ = step_s_;
  }

  // Seconds until all is done.
  double run() {
    deal();
    while (!dealer_->done() || busy()) {
      const auto r = static_cast<std::size_t>(std::ranges::min_element(next_step_) - next_step_.begin());
      now_ = next_step_[r];
      step(r);
      next_step_[r] += step_s_[r];
      deal();
      if (now_ > 1e6) {
        ADD_FAILURE() << "it does not end";
        break;
      }
    }
    return now_;
  }

  std::map<std::int64_t, std::size_t> replica_of;  // by line
  std::vector<std::int64_t> rejected;
  std::vector<std::int64_t> order;  // in which lines were handed out
  std::int64_t most_unread() const { return most_unread_; }

 private:
  struct Active {
    std::int64_t line, left;
  };
  struct Replica {
    std::deque<Active> waiting;
    std::vector<Active> running;
  };
  Clock::time_point time() const {
    return Clock::time_point(std::chrono::duration_cast<Clock::duration>(duration<double>(now_)));
  }
  bool busy() const {
    return std::ranges::any_of(replicas_,
                               [](const Replica& r) { return !r.waiting.empty() || !r.running.empty(); });
  }
  void deal() {
    std::vector<StreamedLine> bad;
    while (auto deal = dealer_->next(time(), bad))
      for (const HeldLine& line : deal->requests) {
        dealt_++;
        order.push_back(line->number);
        EXPECT_TRUE(replica_of.emplace(line->number, static_cast<std::size_t>(deal->replica)).second);
        replicas_[static_cast<std::size_t>(deal->replica)].waiting.push_back(
            {line->number, line->request.max_tokens});
      }
    for (const StreamedLine& line : bad) rejected.push_back(line.number);
    dealt_ += std::ssize(bad);
  }
  void step(std::size_t r) {
    auto& [waiting, running] = replicas_[r];
    for (; !waiting.empty() && std::ssize(running) < batch_; waiting.pop_front())
      running.push_back(waiting.front());
    for (Active& active : running)
      if (--active.left == 0) dealer_->finished(static_cast<std::int64_t>(r), active.line, time());
    std::erase_if(running, [](const Active& active) { return active.left == 0; });
  }

  std::vector<std::int64_t> tokens_;
  std::vector<double> step_s_, next_step_;
  std::int64_t batch_, read_ = 0, dealt_ = 0, most_unread_ = 0;
  double now_ = 0;
  std::optional<RequestDealer> dealer_;
  std::vector<Replica> replicas_;
};

std::vector<std::int64_t> mixed(std::int64_t count) {
  std::vector<std::int64_t> tokens;
  for (std::int64_t i = 0; i < count; i++) tokens.push_back(1 + i * 37 % 61);
  return tokens;
}

TEST(RequestDealer, EveryLineOnce) {
  for (const std::int64_t count : {1, 5, 100, 3000})
    for (const std::size_t replicas : {1, 3, 4})
      for (const bool known : {true, false}) {
        std::vector<std::int64_t> tokens = mixed(count);
        for (std::size_t i = 3; i < tokens.size(); i += 11) tokens[i] = 0;
        Simulation job(tokens, std::vector<double>(replicas, 0.01), 8, 64, known);
        job.run();
        EXPECT_EQ(std::ssize(job.replica_of) + std::ssize(job.rejected), count);
        for (const std::int64_t line : job.rejected) EXPECT_EQ(tokens[static_cast<std::size_t>(line)], 0);
      }
}

TEST(RequestDealer, OneReplicaKeepsTheOrder) {
  Simulation job(mixed(500), {0.01}, 8);
  job.run();
  EXPECT_TRUE(std::ranges::is_sorted(job.order));
}

TEST(RequestDealer, ReadsOnlyWhatItNeeds) {
  Simulation job(mixed(20000), {0.01, 0.01, 0.01}, 8, 100);
  job.run();
  EXPECT_LE(job.most_unread(), 100 + 64);
}

// A replica's batch is full until the last ones: the time is that of an even share.
TEST(RequestDealer, EqualReplicasShareEvenly) {
  const std::vector<std::int64_t> tokens = mixed(2000);
  double sum = 0;
  for (const std::int64_t t : tokens) sum += static_cast<double>(t);
  Simulation job(tokens, std::vector<double>(4, 0.01), 8);
  EXPECT_LE(job.run(), 1.05 * sum * 0.01 / (4 * 8) + 0.01);
}

TEST(RequestDealer, AFewRequestsGoToAllReplicas) {
  Simulation job(std::vector<std::int64_t>(8, 10), std::vector<double>(4, 0.01), 32);
  job.run();
  std::map<std::size_t, int> counts;
  for (const auto& [line, replica] : job.replica_of) counts[replica]++;
  for (std::size_t r = 0; r < 4; r++) EXPECT_EQ(counts[r], 2);
}

// One of four replicas has steps 35 times as long.
TEST(RequestDealer, ASlowReplicaGetsFewer) {
  const std::vector<std::int64_t> tokens(240, 16);
  const double three = Simulation(tokens, {0.02, 0.02, 0.02}, 4).run();
  Simulation job(tokens, {0.02, 0.02, 0.02, 0.7}, 4);
  EXPECT_LE(job.run(), 1.2 * three + 16 * 0.7);
  Simulation even(tokens, {0.02, 0.02, 0.02, 0.02}, 4);
  EXPECT_LE(even.run(), 0.85 * three);
}

// Each sample takes a place in a batch: of requests with eight of them a replica has one, not a batch full.
TEST(RequestDealer, SamplesTakePlaces) {
  std::int64_t read = 0;
  RequestDealer dealer(
      [&](StreamedLine& line) {
        line = line_of(read, 10);
        line.request.samples = 8;
        return read++ < 20 ? Supply::line : Supply::end;
      },
      {.replicas = 2, .max_batch = 4}, Clock::time_point());
  std::vector<StreamedLine> rejected;
  std::map<std::int64_t, std::int64_t> dealt;
  for (int turn = 0; turn < 50; turn++)
    if (const auto deal = dealer.next(Clock::time_point(), rejected))
      dealt[deal->replica] += std::ssize(deal->requests);
  EXPECT_EQ(dealt, (std::map<std::int64_t, std::int64_t>{{0, 1}, {1, 1}}));
}

TEST(RequestDealer, StopsAtOnce) {
  std::int64_t read = 0;
  RequestDealer dealer([&](StreamedLine& line) { return line = line_of(read++, 3), Supply::line; },
                       {.replicas = 2, .max_batch = 4}, Clock::time_point());
  std::vector<StreamedLine> rejected;
  EXPECT_TRUE(dealer.next(Clock::time_point(), rejected));
  EXPECT_FALSE(dealer.done());
  dealer.stop();
  EXPECT_FALSE(dealer.next(Clock::time_point(), rejected));
  EXPECT_TRUE(dealer.done());
}

}  // namespace
}  // namespace ptrt
