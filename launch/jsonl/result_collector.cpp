#include "launch/jsonl/result_collector.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(2);  // between two polls of the mailbox
// After a failure of this rank: how long other ranks are waited for at most, and after how long without a message
// no more are expected.
constexpr auto kPatience = std::chrono::seconds(2);
constexpr auto kQuiet = std::chrono::milliseconds(50);
const char* const kDone = "done";    // a leader's last message
const char* const kFlush = "flush";  // has been taken: so has all before it

}  // namespace

ResultCollector::ResultCollector(JobComm& job, Format format, Store store, int other_leaders,
                                 const CpuSet& units)
    : job_(job), format_(std::move(format)), store_(std::move(store)), leaders_open_(other_leaders) {
  thread_ = std::thread([this, units] {
    bind_this_thread(units);
    try {
      work();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      error_ = std::current_exception();
    }
  });
}

ResultCollector::~ResultCollector() {
  if (!thread_.joinable()) return;
  close(State::abandoned);
  thread_.join();
}

void ResultCollector::close(State how) {
  {
    const std::lock_guard lock(mutex_);
    abandoned_at_ = Clock::now();
    state_ = how;
  }
  changed_.notify_one();
}

void ResultCollector::deliver(Completion&& completion) {
  {
    const std::lock_guard lock(mutex_);
    rethrow_error();
    queue_.push_back(std::move(completion));
  }
  changed_.notify_one();
}

void ResultCollector::finish() {
  close(State::closed);
  thread_.join();
  rethrow_error();
}

void ResultCollector::rethrow_error() {
  if (error_) std::rethrow_exception(error_);
}

void ResultCollector::work() {
  last_taken_ = Clock::now();
  while (!is_over(take_local() | take_posted())) {
  }
  if (!store_ && state_ == State::closed) post(kDone, JobComm::Post::sent);
  // The end of a rank that failed ends the job: rank 0 must have everything by then.
  if (!store_ && state_ == State::abandoned) post(kFlush, JobComm::Post::taken);
}

// Waits until there may be something to take.
bool ResultCollector::is_over(bool took_some) {
  if (took_some) last_taken_ = Clock::now();
  std::unique_lock lock(mutex_);
  if (!queue_.empty()) return false;
  if (took_some) return give_up();
  if (state_ != State::open && leaders_open_ == 0) return true;
  // What other leaders have sent may still be about to arrive.
  if (state_ == State::abandoned &&
      (give_up() || Clock::now() - std::max(last_taken_, abandoned_at_.load()) > kQuiet))
    return true;
  if (leaders_open_ > 0)
    changed_.wait_for(lock, kPoll);
  else
    changed_.wait(lock, [&] { return state_ != State::open || !queue_.empty(); });
  return false;
}

// Whether this rank failed so long ago that other ranks are not waited for any more.
bool ResultCollector::give_up() const {
  return state_ == State::abandoned && Clock::now() - abandoned_at_.load() > kPatience;
}

bool ResultCollector::take_local() {
  Completion completion;
  {
    const std::lock_guard lock(mutex_);
    if (queue_.empty()) return false;
    completion = std::move(queue_.front());
    queue_.pop_front();
  }
  keep_or_post(format_(completion));
  return true;
}

bool ResultCollector::take_posted() {
  if (leaders_open_ == 0) return false;
  const auto message = job_.poll_post();
  if (!message) return false;
  if (*message == kDone) {
    leaders_open_--;
    return true;
  }
  if (*message == kFlush) return true;
  const std::size_t space = message->find(' ');
  PTRT_CHECK(space != std::string::npos);
  keep_or_post({std::stoll(message->substr(0, space)), message->substr(space + 1)});
  return true;
}

void ResultCollector::keep_or_post(const Result& result) {
  if (store_) return store_(result);
  post(fmt::format("{} {}", result.line, result.json), JobComm::Post::sent);
}

void ResultCollector::post(const std::string& message, JobComm::Post until) {
  if (!job_.post(message, until, [this] { return give_up(); }))
    throw_failure("rank 0 did not take the last results of rank {}", job_.rank());
}

}  // namespace ptrt
