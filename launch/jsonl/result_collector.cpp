#include "launch/jsonl/result_collector.h"

#include <chrono>
#include <utility>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(2);  // between two polls of the mailbox
const char* const kDone = "done";                     // a leader's last message

}  // namespace

ResultCollector::ResultCollector(JobComm& job, Format format, Journal* journal, Progress* progress,
                                 int other_leaders, const CpuSet& units)
    : job_(job),
      format_(std::move(format)),
      journal_(journal),
      progress_(progress),
      leaders_open_(other_leaders) {
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
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = closed_ = true;
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
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
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_one();
  thread_.join();
  rethrow_error();
}

void ResultCollector::rethrow_error() {
  if (error_) std::rethrow_exception(error_);
}

void ResultCollector::work() {
  for (;;) {
    const bool some = take_local() | take_posted();
    std::unique_lock lock(mutex_);
    if (cancelled_) return;
    if (some || !queue_.empty()) continue;
    if (closed_ && leaders_open_ == 0) break;
    if (leaders_open_ > 0)
      changed_.wait_for(lock, kPoll);
    else
      changed_.wait(lock, [&] { return closed_ || !queue_.empty(); });
  }
  if (journal_ == nullptr) job_.post(kDone);
}

bool ResultCollector::take_local() {
  Completion completion;
  {
    const std::lock_guard lock(mutex_);
    if (queue_.empty()) return false;
    completion = std::move(queue_.front());
    queue_.pop_front();
  }
  store(format_(completion));
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
  const std::size_t space = message->find(' ');
  PTRT_CHECK(space != std::string::npos);
  store({std::stoll(message->substr(0, space)), message->substr(space + 1)});
  return true;
}

void ResultCollector::store(const Result& result) {
  if (journal_ == nullptr) {
    job_.post(fmt::format("{} {}", result.line, result.json));
    return;
  }
  journal_->append(result.line, result.json);
  progress_->advance();
}

}  // namespace ptrt
