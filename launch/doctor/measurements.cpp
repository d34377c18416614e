#include "launch/doctor/measurements.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/base/file_descriptor.h"
#include "kernels/base/output_file.h"
#include "kernels/make_cpu_backend.h"
#include "launch/job/process.h"
#include "runtime/comm/clock_offsets.h"
#include "runtime/comm/watched_comm.h"
#include "runtime/sync/host_all_reduce.h"

namespace fs = std::filesystem;

namespace ptrt {
namespace {

constexpr std::int64_t kSizes[] = {4 << 10, 64 << 10, 1 << 20};  // bytes
constexpr int kFirstSums = 5, kMostSums = 100;
constexpr double kSecondsASize = 0.2;

LockSeen try_lock(const std::string& path, int how) {
  const FileDescriptor file(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!file) return LockSeen::absent;
  if (flock(file.get(), how | LOCK_NB) == 0) return LockSeen::free;
  return errno == EWOULDBLOCK ? LockSeen::held : LockSeen::unsupported;
}

// A file with a lock on it while the object lives.
class LockedFile {
 public:
  explicit LockedFile(const std::string& folder)
      : path_(create_temporary_beside(folder + "/ptrt-doctor")),
        file_(open(path_.c_str(), O_RDWR | O_CLOEXEC)),
        locked_(file_ && flock(file_.get(), LOCK_EX | LOCK_NB) == 0) {}
  ~LockedFile() { remove_temporary(path_); }
  LockedFile(const LockedFile&) = delete;
  LockedFile& operator=(const LockedFile&) = delete;

  const std::string& path() const { return path_; }
  bool locked() const { return locked_; }

 private:
  std::string path_;
  FileDescriptor file_;
  bool locked_;
};

double median(std::vector<double> samples) {
  std::ranges::nth_element(samples, samples.begin() + std::ssize(samples) / 2);
  return samples[samples.size() / 2];
}

std::int64_t wall_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

struct Moment {
  std::int64_t steady_ns = 0, wall_ns = 0;
};

// Both clocks at once: the attempt that was interrupted least.
Moment read_clocks() {
  constexpr int kAttempts = 20;
  Moment best;
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (int i = 0; i < kAttempts; i++) {
    const std::int64_t before = now_ns(), wall = wall_ns(), after = now_ns();
    if (after - before >= least) continue;
    least = after - before;
    best = {before + least / 2, wall};
  }
  return best;
}

// By the clocks that the ranks have beside that of the day, and whose offsets are measured.
std::vector<double> clocks_ahead(TrackComm& comm) {
  const ClockOffsets offsets(comm);
  const Moment mine = read_clocks();
  std::vector<Moment> all(static_cast<std::size_t>(comm.size()));
  comm.all_gather(&mine, all.data(), sizeof mine);
  std::vector<double> ahead;
  for (int r = 0; r < comm.size(); r++) {
    const Moment& there = all[static_cast<std::size_t>(r)];
    const std::int64_t since = offsets.to_mine(r, there.steady_ns) - offsets.to_mine(0, all[0].steady_ns);
    ahead.push_back(1e-9 * static_cast<double>(there.wall_ns - all[0].wall_ns - since));
  }
  return ahead;
}

class SumTimer {
 public:
  SumTimer(TrackComm& comm, bool oversubscribed)
      : comm_(comm),
        backend_(make_cpu_backend({.threads = 1, .oversubscribed = oversubscribed})),
        all_reduce_(comm, *backend_, state_, 1, kSizes[std::size(kSizes) - 1] / 4),
        part_(static_cast<std::size_t>(kSizes[std::size(kSizes) - 1] / 4), 1.0f),
        sum_(part_.size()) {}

  bool shares_memory() const { return all_reduce_.shares_memory(); }
  bool two_levels() const { return all_reduce_.offers(AllReduceAlgorithm::two_level); }

  // As many sums as are worth it; all ranks take the same decision.
  double median_us(std::int64_t bytes) {
    for (int i = 0; i < kFirstSums; i++) slowest_us(bytes);
    const double first = std::max(slowest_us(bytes), 1.0);
    const auto sums = static_cast<int>(std::clamp(1e6 * kSecondsASize / first, 5.0, double{kMostSums}));
    std::vector<double> samples;
    for (int i = 0; i < sums; i++) samples.push_back(slowest_us(bytes));
    return median(samples);
  }

 private:
  double slowest_us(std::int64_t bytes) {
    double mine = 0;
    std::vector<double> all(static_cast<std::size_t>(comm_.size()));
    comm_.all_gather(&mine, all.data(), sizeof mine);  // start together
    const std::int64_t start = now_ns();
    const float* parts[] = {part_.data()};
    all_reduce_.sum(parts, bytes / 4, 1.0f, nullptr, sum_.data());
    mine = 1e-3 * static_cast<double>(now_ns() - start);
    comm_.all_gather(&mine, all.data(), sizeof mine);
    return std::ranges::max(all);
  }

  TrackComm& comm_;
  std::unique_ptr<Backend> backend_;
  StepState state_;
  HostAllReduce all_reduce_;
  std::vector<float> part_, sum_;
};

}  // namespace

OutputTest test_output(JobComm& job, const std::string& path) {
  OutputTest test;
  test.path = path;
  if (path.empty()) return test;
  std::optional<LockedFile> file;
  std::error_code ignored;
  if (job.rank() == 0) try {
      const bool is_folder = fs::is_directory(path, ignored);
      const std::string folder = is_folder ? path : fs::path(behind_links(path)).parent_path().string();
      file.emplace(fs::absolute(folder.empty() ? "." : folder, ignored).string());
      struct statvfs space;
      if (statvfs(file->path().c_str(), &space) == 0)
        test.free_bytes =
            static_cast<std::int64_t>(space.f_bavail) * static_cast<std::int64_t>(space.f_frsize);
    } catch (const Error& error) {
      test.error = error.what();
    }
  // "PATH" where there is a lock on it, "-PATH" where there can be none, empty where there is no file.
  const std::string shared = job.broadcast(file ? (file->locked() ? "" : "-") + file->path() : std::string());
  LockSeen mine = LockSeen::absent;
  if (shared.starts_with('-'))
    mine = LockSeen::unsupported;
  else if (!shared.empty())
    mine = try_lock(shared, LOCK_SH);  // in rank 0 too: a lock is that of an open file
  for (const std::string& seen : job.all_gather(std::to_string(static_cast<int>(mine))))
    test.seen.push_back(static_cast<LockSeen>(std::stoi(seen)));
  return test;
}

void test_exchange(JobComm& job, bool oversubscribed, Measurements& found) {
  found.clock_ahead_s.assign(static_cast<std::size_t>(job.size()), 0);
  if (job.size() == 1) return;
  auto comm = job.split(0, oversubscribed ? Waiting::yielding : Waiting::spinning);
  if (Watchdog* watchdog = job.watchdog())
    comm = make_watched_comm(std::move(comm), *watchdog, "the other ranks");
  found.clock_ahead_s = clocks_ahead(*comm);
  SumTimer timer(*comm, oversubscribed);
  found.shares_memory = timer.shares_memory();
  found.two_levels = timer.two_levels();
  for (const std::int64_t bytes : kSizes) found.all_reduce.push_back({bytes, timer.median_us(bytes)});
}

}  // namespace ptrt
