#include "launch/jsonl/result_collector.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "kernels/base/error.h"
#include "runtime/requests/byte_string.h"

namespace ptrt {
namespace {

constexpr auto kTurn =
    std::chrono::milliseconds(100);                   // between two turns where nothing comes from elsewhere
constexpr auto kPoll = std::chrono::milliseconds(2);  // between two polls of the mailbox
// After a failure of this rank: how long other ranks are waited for at most, and after how long without a message
// no more are expected.
constexpr auto kPatience = std::chrono::seconds(2);
constexpr auto kQuiet = std::chrono::milliseconds(50);
// Results that travel and are stored together.
constexpr std::size_t kMostResults = 256;
constexpr std::size_t kMostBytes = std::size_t{256} << 10;
// The first byte of a leader's message.
constexpr char kResults = 'r';
constexpr char kDone = 'd';   // its last one
constexpr char kFlush = 'f';  // has been taken: so has all before it

}  // namespace

ResultCollector::ResultCollector(JobComm& job, Hooks hooks, int other_leaders, const CpuSet& units)
    : job_(job),
      hooks_(std::move(hooks)),
      leaders_open_(other_leaders),
      awaits_orders_(static_cast<bool>(hooks_.order)) {
  thread_ = std::thread([this, units] {
    bind_this_thread(units);
    try {
      work();
    } catch (...) {
      {
        const std::lock_guard lock(mutex_);
        error_ = std::current_exception();
      }
      if (hooks_.failed) hooks_.failed(std::current_exception());
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
  bool is_first = false;
  {
    const std::lock_guard lock(mutex_);
    rethrow_error();
    is_first = queue_.empty();
    queue_.push_back(std::move(completion));
  }
  if (is_first) changed_.notify_one();
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
  while (!is_over(take_local() | take_mail() | take_turn())) {
  }
  if (hooks_.store) return;
  // The end of a rank that failed ends the job: rank 0 must have everything by then.
  if (state_ == State::abandoned) return post(std::string(1, kFlush), JobComm::Post::taken);
  post(std::string(1, kDone), JobComm::Post::sent);
  // Its answer is the last message of all.
  while (awaits_orders_ && state_ != State::abandoned)
    if (!take_mail()) std::this_thread::sleep_for(kPoll);
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
  if (leaders_open_ > 0 || awaits_orders_ || (hooks_.awaits_input && hooks_.awaits_input()))
    changed_.wait_for(lock, kPoll);
  else
    changed_.wait_for(lock, kTurn, [&] { return state_ != State::open || !queue_.empty(); });
  return false;
}

// Whether this rank failed so long ago that other ranks are not waited for any more.
bool ResultCollector::give_up() const {
  return state_ == State::abandoned && Clock::now() - abandoned_at_.load() > kPatience;
}

bool ResultCollector::take_local() {
  taken_.clear();
  {
    const std::lock_guard lock(mutex_);
    const auto end = queue_.begin() + static_cast<std::ptrdiff_t>(std::min(queue_.size(), kMostResults));
    std::move(queue_.begin(), end, std::back_inserter(taken_));
    queue_.erase(queue_.begin(), end);
  }
  if (taken_.empty()) return false;
  results_.clear();
  std::string message(1, kResults);
  for (const Completion& completion : taken_) {
    Result result = hooks_.format(completion);
    if (hooks_.store) {
      results_.push_back(std::move(result));
      continue;
    }
    append_bytes(message, result.line);
    append_bytes(message, result.json);
    if (message.size() < kMostBytes) continue;
    post(message, JobComm::Post::sent);
    message.assign(1, kResults);
  }
  if (hooks_.store) hooks_.store(results_, job_.rank());
  if (message.size() > 1) post(message, JobComm::Post::sent);
  return true;
}

bool ResultCollector::take_mail() {
  if (leaders_open_ == 0 && !awaits_orders_) return false;
  const auto mail = job_.poll_post();
  if (!mail) return false;
  PTRT_CHECK(!mail->text.empty());
  if (!hooks_.store)
    awaits_orders_ = !hooks_.order(mail->text);
  else if (mail->text[0] == kResults)
    take_results(mail->text, mail->from);
  else if (mail->text[0] == kDone)
    take_leave(mail->from);
  return true;
}

void ResultCollector::take_results(const std::string& message, int from) {
  results_.clear();
  for (ByteReader bytes(std::string_view(message).substr(1)); !bytes.empty();) {
    Result& result = results_.emplace_back();
    bytes.take(result.line);
    bytes.take(result.json);
  }
  hooks_.store(results_, from);
}

void ResultCollector::take_leave(int from) {
  leaders_open_--;
  if (hooks_.left) hooks_.left(from);
}

bool ResultCollector::take_turn() {
  return hooks_.turn && state_ != State::abandoned && hooks_.turn();
}

void ResultCollector::post(const std::string& message, JobComm::Post until) {
  if (!job_.post(message, until, [this] { return give_up(); }))
    throw_failure("rank 0 did not take the last results of rank {}", job_.rank());
}

}  // namespace ptrt
