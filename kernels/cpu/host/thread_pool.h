// The one pool of worker threads of a backend. Work is a list of independent tasks; which thread
// runs which task is undefined, so a result must never depend on it.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

#include "kernels/base/host_cores.h"

namespace ptrt {

inline constexpr int kMaxThreads = 1024;
// A quarter of a core's own cache of 1 MiB, which leaves room for the ops in between. Where that
// cache is smaller, the next cache level is still nearer than memory.
inline constexpr std::size_t kAheadBytes = 256 << 10;

class ThreadPool {
 public:
  // `threads` workers, the calling thread included. Throws on threads < 1 or > kMaxThreads. Worker
  // w is bound to cores[w], if given; worker 0 is the calling thread, which binds itself. A worker
  // that waits for the next job spins for a moment before it sleeps; it does not spin where the
  // cores are oversubscribed.
  explicit ThreadPool(int threads, const std::vector<CpuSet>& cores = {}, bool oversubscribed = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }
  bool spins() const { return spins_; }

  // Called by a task for the worker that runs it: memory that the worker will need later, such as
  // weights of the next product. Replaces what was given before. While the worker spins, it reads
  // that memory into its core's cache, from the beginning up to kAheadBytes. The memory must stay
  // until the pool has ended or is stopped.
  void read_ahead(int worker, std::span<const std::byte> bytes);
  // Ends the workers. From now on there is only the calling thread.
  void stop();

  // Calls body(task, worker) for every task in [0, tasks), worker in [0, threads()), and returns
  // when all are done. The first exception a task throws is thrown again here, and the tasks not
  // yet begun are skipped. One caller at a time; a task must not call parallel_for. Nothing is
  // allocated.
  template <typename Body>
  void parallel_for(std::int64_t tasks, Body&& body) {
    if (tasks <= 1 || threads_ == 1) {
      for (std::int64_t task = 0; task < tasks; ++task) body(task, 0);
      return;
    }
    using Callable = std::remove_reference_t<Body>;
    run(
        tasks,
        [](void* context, std::int64_t task, int worker) {
          (*static_cast<Callable*>(context))(task, worker);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  // What a worker has not read yet of the memory given by read_ahead(); only the worker uses it.
  struct alignas(64) Ahead {
    std::span<const std::byte> bytes;
  };

  using Invoke = void (*)(void* context, std::int64_t task, int worker);

  void run(std::int64_t tasks, Invoke invoke, void* context);
  void work(std::uint32_t epoch, int worker);
  void execute(std::int64_t task, int worker) noexcept;
  void worker_loop(int worker, const CpuSet& core);
  template <typename Condition>
  bool wait_awake(int worker, const Condition& condition);

  int threads_;  // worker threads, the calling one included
  bool spins_;   // whether waiting threads may burn their core for a moment

  // The current job, read only by a thread that has claimed one of its tasks. The ticket carries
  // the job's epoch in its upper half and the number of tasks not yet claimed in its lower half: a
  // job that is used up shows zero, so a worker that comes late can claim nothing while the next
  // job is being set up.
  std::atomic<Invoke> invoke_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<std::int64_t> tasks_{0};

  alignas(64) std::atomic<std::uint64_t> ticket_{0};
  alignas(64) std::atomic<std::int64_t> pending_{0};  // tasks claimed or not that are not done
  alignas(64) std::atomic<std::uint32_t> epoch_{0};   // of the newest job; workers sleep on it
  std::atomic<bool> stop_{false};

  std::atomic<bool> failed_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;

  std::vector<Ahead> ahead_;  // [threads]
  std::vector<std::thread> workers_;
};

}  // namespace ptrt
