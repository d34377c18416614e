#include "runtime/comm/watchdog.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "kernels/base/clock.h"
#include "kernels/base/progress.h"
#include "runtime/job/launcher.h"
#include "runtime/job/reporter.h"

namespace ptrt {
namespace {

constexpr double kPollInterval = 0.2;     // seconds, at most
constexpr double kLongestPeriod = 2;      // seconds between two signs of life
constexpr double kSuspended = 0.8;        // seconds: no thread is scheduled that late
constexpr double kPatienceWaiting = 0.5;  // more, of a rank that waits for others
constexpr double kPatienceOfRank = 0.3;   // more, times its number, which counts up to
constexpr int kRanksInTurn = 10;
constexpr double kSilentAtStop = 3;  // seconds of silence that end a job once it is to stop
// Seconds. A launcher that ends the job sends a signal first; then another rank has printed the reason, and the
// launcher kills the others within this time.
constexpr double kLauncherKills = 6;
constexpr double kAnnouncementComes = 0.1;  // seconds that an announcement may take between two ranks
constexpr double kSilentToo = 0.7;          // of the limit: ranks that one cause silenced differ by a period
constexpr double kSilenceExplains =
    2;  // seconds after which the rank that should report a silent one does not

double seconds_since(std::int64_t ns) {
  return 1e-9 * static_cast<double>(now_ns() - ns);
}

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
  steps_ = 0;
  enter(nullptr);
}

void Watchdog::enter(const char* phase, Phase kind, double at_least_s) {
  const std::lock_guard lock(mutex_);
  last_progress_ns_ = now_ns();
  phase_ = phase;
  phase_kind_ = kind;
  limit_s_ = std::max(options_.step_timeout_s, at_least_s);
  running_ = true;
}

void Watchdog::stop() {
  const std::lock_guard lock(mutex_);
  running_ = false;
}

void Watchdog::begin_heartbeat(std::unique_ptr<PulseComm> comm, std::vector<std::string> hosts) {
  if (options_.step_timeout_s <= 0) return;
  const double period = std::clamp(options_.step_timeout_s / 10, kPollInterval, kLongestPeriod);
  const std::lock_guard lock(mutex_);
  options_.rank = comm->rank();
  heartbeat_ = std::make_unique<Heartbeat>(std::move(comm), std::move(hosts), period);
}

void Watchdog::end_heartbeat() {
  const std::lock_guard lock(mutex_);
  heartbeat_.reset();
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
    if (seconds_since(checked_ns) > interval.count() + kSuspended) {
      last_progress_ns_ = now_ns();
      if (heartbeat_) heartbeat_->restart();
    }
    checked_ns = now_ns();
    beat();
    if (stop_seen_ns_ == 0 && stopping()) {
      stop_seen_ns_ = now_ns();
      silent_at_stop_ = heartbeat_ ? heartbeat_->silence() : 0;
    }
    std::string what = detect_failure();
    if (what.empty()) continue;
    running_ = false;
    const bool launcher_may_kill = stopping() && !ends_a_stop_;
    const double patience = another_reports(lock) ? kLauncherEndsJob : launcher_may_kill ? kLauncherKills : 0;
    if (changed_.wait_for(lock, std::chrono::duration<double>(patience), [this] { return ended_; })) return;
    lock.unlock();
    on_failure_(what, [this] { abort_groups(); });
    lock.lock();
  }
}

// Whether a process of this host was first to ask for it, or a rank has told this one: before, or, of lower number, at
// the same time.
bool Watchdog::another_reports(std::unique_lock<std::mutex>& lock) {
  if (options_.first_to_report && !options_.first_to_report()) return true;
  if (!heartbeat_) return false;
  if (heartbeat_->ending_rank() >= 0) return true;
  heartbeat_->announce_end();
  changed_.wait_for(lock, std::chrono::duration<double>(kAnnouncementComes), [this] { return ended_; });
  const int other = heartbeat_ ? heartbeat_->ending_rank() : -1;
  return other >= 0 && other < options_.rank;
}

// Work of other threads counts as this rank's; what this rank does counts as the job's, unless it only waits.
void Watchdog::beat() {
  if (const std::uint64_t seen = progress_count(); std::exchange(progress_seen_, seen) != seen)
    last_progress_ns_ = now_ns();
  const std::int64_t last = last_progress_ns_.load(std::memory_order_relaxed);
  if (std::exchange(progress_seen_ns_, last) != last) work_++;
  if (heartbeat_) heartbeat_->beat(work_);
}

std::string Watchdog::detect_failure() {
  if (!running_) return "";
  for (DeviceCollectives* group : groups_)
    if (std::string failure = group->failure(); !failure.empty())
      return fmt::format("in step {}: {}", steps_.load(), failure);
  if (options_.step_timeout_s <= 0) return "";
  std::string silence = detect_silence();
  return silence.empty() ? detect_stall() : silence;
}

std::string Watchdog::where() const {
  return phase_ == nullptr ? fmt::format("step {}", steps_.load()) : phase_;
}

// The wait of this rank for those that report before it.
double Watchdog::turn() const {
  return kPatienceOfRank * std::min(options_.rank, kRanksInTurn);
}

std::string Watchdog::detect_silence() {
  if (!heartbeat_) return "";
  const double silent = heartbeat_->silence();
  const double patience = options_.rank == 0 ? 0 : kPatienceWaiting + turn();
  // A rank that was silent before the signal is the reason to end at once. One that fell silent with it may
  // have ended the job itself, and so may rank 0, which hears of silent ranks first.
  const bool before = options_.rank == 0 && silent_at_stop_ > kSilentAtStop;
  ends_a_stop_ = stop_seen_ns_ != 0 && (before || seconds_since(stop_seen_ns_) > kLauncherEndsJob);
  if (ends_a_stop_ && silent > kSilentAtStop + patience)
    return fmt::format("{}: to be stopped by a signal, but {} has given no sign of life for {:.1f} s",
                       where(), heartbeat_->silent_ranks(kSilentAtStop), silent);
  ends_a_stop_ = false;
  if (silent < options_.step_timeout_s + patience) return "";
  return fmt::format(
      "{}: no sign of life from {} for {:.1f} s: stopped, or its host is cut off (--step-timeout {:g})",
      where(), heartbeat_->silent_ranks(kSilentToo * options_.step_timeout_s), silent,
      options_.step_timeout_s);
}

std::string Watchdog::detect_stall() const {
  const Wait* wait = wait_.load(std::memory_order_acquire);
  // On a device a rank cannot know whether it waits for others or for its own work.
  const bool waits = wait != nullptr || phase_kind_ == Phase::waiting, may_wait = waits || !groups_.empty();
  double silent = seconds_since(last_progress_ns_.load(std::memory_order_relaxed));
  const bool for_the_job = wait != nullptr ? wait->comm == nullptr : phase_kind_ == Phase::waiting;
  if (for_the_job && heartbeat_) silent = std::min(silent, heartbeat_->since_work());
  double patience = (waits ? kPatienceWaiting : 0) + (may_wait ? turn() : 0);
  // A silent rank is the reason, and will be reported as that.
  if (heartbeat_ && heartbeat_->silence() > std::min(kSilentAtStop, options_.step_timeout_s))
    patience += kSilenceExplains;
  if (silent < options_.step_timeout_s + patience) return "";
  // Without signs of life the system may know of a stopped rank; then MPI needs no longer to start.
  const std::string stopped = for_the_job && !heartbeat_ ? stopped_ranks_here() : "";
  if (stopped.empty() && silent < limit_s_ + patience) return "";
  if (!waits)
    return fmt::format("{}: stuck for {:.1f} s at work of this rank or its device (--step-timeout {:g})",
                       where(), silent, options_.step_timeout_s);
  if (wait == nullptr && stopped.empty())
    return fmt::format(
        "{}: no progress for {:.1f} s, of this rank or of those it waits for (--step-timeout {:g})", where(),
        silent, options_.step_timeout_s);
  std::string late = wait != nullptr && wait->comm != nullptr ? wait->comm->late_ranks() : stopped;
  if (late.empty()) late = wait->others;
  return fmt::format("{}: no word from {} for {:.1f} s (--step-timeout {:g})", where(), late, silent,
                     options_.step_timeout_s);
}

void Watchdog::abort_groups() {
  const std::lock_guard lock(mutex_);
  for (DeviceCollectives* group : groups_) group->abort();
}

}  // namespace ptrt
