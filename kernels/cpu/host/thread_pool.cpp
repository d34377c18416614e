#include "kernels/cpu/host/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

#include "hwy/cache_control.h"
#include "kernels/base/error.h"

namespace ptrt {
namespace {

// Longer than the gap between two ops of a decode step, far shorter than a scheduler's time slice.
constexpr auto kSpinTime = std::chrono::microseconds(40);
constexpr int kTaskBits = 32;
constexpr std::uint64_t kTaskMask = (std::uint64_t{1} << kTaskBits) - 1;

int usable_units() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());
}

constexpr std::size_t kLine = 64, kBurst = 8 * kLine;

// Reads a little of it: by loads, as a processor drops prefetches when many are in flight.
void read_some(std::span<const std::byte>& bytes) {
  const std::size_t count = std::min(bytes.size(), kBurst);
  for (std::size_t at = 0; at < count; at += kLine)
    static_cast<void>(*reinterpret_cast<const volatile std::byte*>(bytes.data() + at));
  bytes = bytes.subspan(count);
}

template <typename Condition>
bool spin_until(const Condition& condition) {
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 32; ++i) {
      if (condition()) return true;
      hwy::Pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

// Bound workers have a core each; without a binding, the cores of this process are counted.
ThreadPool::ThreadPool(int threads, const std::vector<CpuSet>& cores, bool oversubscribed)
    : threads_(threads), spins_(!oversubscribed && (!cores.empty() || usable_units() >= threads)) {
  if (threads < 1 || threads > kMaxThreads)
    throw_bad_input("number of threads must be between 1 and {}, got {}", kMaxThreads, threads);
  PTRT_CHECK(cores.empty() || cores.size() == static_cast<std::size_t>(threads));
  ahead_.resize(static_cast<std::size_t>(threads));
  workers_.reserve(static_cast<std::size_t>(threads - 1));
  try {
    for (int worker = 1; worker < threads; ++worker)
      workers_.emplace_back(
          [this, worker, core = cores.empty() ? CpuSet() : cores[worker]] { worker_loop(worker, core); });
  } catch (const std::system_error& error) {
    const std::size_t started = workers_.size() + 1;
    stop();
    throw_failure("cannot start thread {} of {}: {}", started, threads, error.what());
  }
}

ThreadPool::~ThreadPool() {
  stop();
}

void ThreadPool::stop() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
  threads_ = 1;
}

void ThreadPool::run(std::int64_t tasks, Invoke invoke, void* context) {
  PTRT_CHECK(static_cast<std::uint64_t>(tasks) < kTaskMask);
  PTRT_CHECK(pending_.load() == 0);
  const std::uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  invoke_.store(invoke, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  tasks_.store(tasks, std::memory_order_relaxed);
  pending_.store(tasks, std::memory_order_relaxed);
  ticket_.store((std::uint64_t{epoch} << kTaskBits) | static_cast<std::uint64_t>(tasks),
                std::memory_order_release);
  epoch_.store(epoch);
  epoch_.notify_all();

  work(epoch, 0);
  const auto finished = [this] { return pending_.load(std::memory_order_acquire) == 0; };
  if (!finished() && !wait_awake(0, finished)) {
    for (std::int64_t left = pending_.load(); left != 0; left = pending_.load()) pending_.wait(left);
  }
  if (failed_.load(std::memory_order_relaxed)) {
    failed_.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

// Claims and runs tasks of the job `epoch` until there is none left or a newer job has begun. A
// worker that wakes late just finds nothing to do; no thread waits for it.
void ThreadPool::work(std::uint32_t epoch, int worker) {
  std::int64_t done = 0;
  std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (ticket >> kTaskBits == epoch) {
    const auto left = static_cast<std::int64_t>(ticket & kTaskMask);
    if (left == 0) break;
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire))
      continue;
    // From the claim until `done` is counted below the job cannot end, so its fields stay as they
    // are.
    execute(tasks_.load(std::memory_order_relaxed) - left, worker);
    ++done;
    ticket = ticket_.load(std::memory_order_acquire);
  }
  if (done > 0 && pending_.fetch_sub(done, std::memory_order_acq_rel) == done) pending_.notify_one();
}

void ThreadPool::read_ahead(int worker, std::span<const std::byte> bytes) {
  ahead_[static_cast<std::size_t>(worker)].bytes = bytes.first(std::min(bytes.size(), kAheadBytes));
}

// Whether the condition became true before the time to sleep.
template <typename Condition>
bool ThreadPool::wait_awake(int worker, const Condition& condition) {
  if (!spins_) return false;
  for (std::span<const std::byte>& bytes = ahead_[static_cast<std::size_t>(worker)].bytes; !bytes.empty();
       read_some(bytes))
    if (condition()) return true;
  return spin_until(condition);
}

void ThreadPool::execute(std::int64_t task, int worker) noexcept {
  if (failed_.load(std::memory_order_relaxed)) return;
  try {
    invoke_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), task, worker);
  } catch (...) {
    const std::lock_guard lock(error_mutex_);
    if (!failed_.load(std::memory_order_relaxed)) error_ = std::current_exception();
    failed_.store(true, std::memory_order_relaxed);
  }
}

void ThreadPool::worker_loop(int worker, const CpuSet& core) {
  bind_this_thread(core);  // an aid alone: refused, it runs all the same
  std::uint32_t seen = 0;
  for (;;) {
    const auto called = [this, &seen] { return epoch_.load(std::memory_order_acquire) != seen; };
    if (!wait_awake(worker, called)) epoch_.wait(seen);
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    work(seen, worker);
  }
}

}  // namespace ptrt
