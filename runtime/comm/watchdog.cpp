#include "runtime/comm/watchdog.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "kernels/base/clock.h"

namespace ptrt {
namespace {

constexpr double kPollInterval = 0.2;     // seconds, at most
constexpr double kSuspended = 0.8;        // seconds: no thread is scheduled that late
constexpr double kPatienceWaiting = 0.5;  // more, of a rank that waits for others
constexpr double kPatienceOfRank = 0.3;   // more, times its number, which counts up to
constexpr int kRanksInTurn = 10;

double seconds_since(std::int64_t ns) {
  return 1e-9 * static_cast<double>(now_ns() - ns);
}

class WatchedComm final : public TrackComm {
 public:
  WatchedComm(std::unique_ptr<TrackComm> inner, Watchdog& watchdog, const char* others)
      : inner_(std::move(inner)), watchdog_(watchdog), wait_{others, &*inner_} {}
  ~WatchedComm() override { watchdog_.forget_waits(); }
  WatchedComm(const WatchedComm&) = delete;
  WatchedComm& operator=(const WatchedComm&) = delete;

  int size() const override { return inner_->size(); }
  int rank() const override { return inner_->rank(); }
  void all_gather(const void* send, void* recv, std::size_t bytes) override {
    watchdog_.wait_begins(wait_);
    inner_->all_gather(send, recv, bytes);
    watchdog_.wait_ends();
  }
  void all_to_all(const void* send, void* recv, std::size_t bytes) override {
    watchdog_.wait_begins(wait_);
    inner_->all_to_all(send, recv, bytes);
    watchdog_.wait_ends();
  }
  void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) override {
    watchdog_.wait_begins(wait_);
    inner_->exchange(sends, receives);
    watchdog_.wait_ends();
  }
  std::unique_ptr<SharedMemory> share(std::size_t bytes) override { return inner_->share(bytes); }
  Waiting waiting() const override { return inner_->waiting(); }
  void listen(int from) override {
    if (!listens_) watchdog_.wait_begins(wait_);
    listens_ = true;
    inner_->listen(from);
  }
  void listened() override {
    inner_->listened();
    watchdog_.wait_ends();
    listens_ = false;
  }
  std::string late_ranks() override { return inner_->late_ranks(); }

 private:
  bool listens_ = false;
  std::unique_ptr<TrackComm> inner_;
  Watchdog& watchdog_;
  Watchdog::Wait wait_;
};

}  // namespace

Watchdog::Watchdog(const WatchdogOptions& options, OnFailure on_failure)
    : options_(options), on_failure_(std::move(on_failure)), thread_([this] { monitor(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Watchdog::start() {
  last_progress_ns_ = now_ns();
  steps_ = 0;
  const std::lock_guard lock(mutex_);
  running_ = true;
}

void Watchdog::stop() {
  const std::lock_guard lock(mutex_);
  running_ = false;
}

void Watchdog::step_begins() {
  steps_.fetch_add(1, std::memory_order_relaxed);
  last_progress_ns_.store(now_ns(), std::memory_order_relaxed);
}
void Watchdog::wait_begins(const Wait& wait) {
  last_progress_ns_.store(now_ns(), std::memory_order_relaxed);
  wait_.store(&wait, std::memory_order_release);
}
void Watchdog::wait_ends() {
  last_progress_ns_.store(now_ns(), std::memory_order_relaxed);
  wait_.store(nullptr, std::memory_order_release);
}
void Watchdog::forget_waits() {
  const std::lock_guard lock(mutex_);  // so that monitor() reads none that is destroyed
  wait_.store(nullptr, std::memory_order_release);
}

void Watchdog::watch(DeviceCollectives& group) {
  const std::lock_guard lock(mutex_);
  groups_.push_back(&group);
}
void Watchdog::forget(DeviceCollectives& group) {
  const std::lock_guard lock(mutex_);
  std::erase(groups_, &group);
}

void Watchdog::monitor() {
  const double limit = options_.step_timeout_s;
  const std::chrono::duration<double> interval(limit > 0 ? std::min(kPollInterval, limit / 4)
                                                         : kPollInterval);
  std::int64_t checked_ns = now_ns();
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, interval, [this] { return ended_; })) {
    // If this thread overslept, the whole process was suspended; restart the timeout.
    if (seconds_since(checked_ns) > interval.count() + kSuspended) last_progress_ns_ = now_ns();
    checked_ns = now_ns();
    const std::string what = running_ ? detect_failure() : "";
    if (what.empty()) continue;
    running_ = false;
    lock.unlock();
    on_failure_(what, [this] { abort_groups(); });
    lock.lock();
  }
}

std::string Watchdog::detect_failure() {
  for (DeviceCollectives* group : groups_)
    if (std::string failure = group->failure(); !failure.empty())
      return fmt::format("in step {}: {}", steps_.load(), failure);
  return options_.step_timeout_s > 0 ? detect_stall() : "";
}

std::string Watchdog::detect_stall() const {
  const Wait* wait = wait_.load(std::memory_order_acquire);
  const double silent = seconds_since(last_progress_ns_.load(std::memory_order_relaxed));
  // On a device a rank cannot know whether it waits for others or for its own work.
  const bool may_wait = wait != nullptr || !groups_.empty();
  double patience = options_.step_timeout_s + (wait != nullptr ? kPatienceWaiting : 0);
  if (may_wait) patience += kPatienceOfRank * std::min(options_.rank, kRanksInTurn);
  if (silent < patience) return "";
  if (wait == nullptr)
    return fmt::format("step {}: stuck for {:.1f} s at work of this rank or its device (--step-timeout {:g})",
                       steps_.load(), silent, options_.step_timeout_s);
  const std::string late = wait->comm->late_ranks();
  return fmt::format("step {}: no word from {} for {:.1f} s (--step-timeout {:g})", steps_.load(),
                     late.empty() ? wait->others : late, silent, options_.step_timeout_s);
}

void Watchdog::abort_groups() {
  const std::lock_guard lock(mutex_);
  for (DeviceCollectives* group : groups_) group->abort();
}

std::unique_ptr<TrackComm> make_watched_comm(std::unique_ptr<TrackComm> inner, Watchdog& watchdog,
                                             const char* others) {
  return std::make_unique<WatchedComm>(std::move(inner), watchdog, others);
}

}  // namespace ptrt
