#include "launch/job/process.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <future>
#include <thread>
#include <utility>

#include "launch/job/standard_streams.h"
#include "runtime/comm/mpi_comm.h"
#include "runtime/comm/watched_comm.h"
#include "runtime/job/fault.h"
#include "runtime/job/launcher.h"
#include "runtime/job/reporter.h"

namespace ptrt {
namespace {

constexpr double kWaitToAgree = 3;                     // seconds
constexpr double kLongestStart = 60;                   // seconds that MPI may take to start on a busy machine
constexpr auto kAbortLimit = std::chrono::seconds(2);  // of GPU groups

std::atomic<bool> g_skips_exit_handlers{false};
std::atomic<bool> g_stop{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set in a signal handler");

// One stop may arrive more than once (from a launcher and through its process group). So only a SIGTERM or
// SIGINT that comes a second or two after the first signal kills the process.
void note_signal(int number) {
  static std::atomic<std::int64_t> first_s{-1};
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  std::int64_t before = -1;
  g_stop = true;
  if (first_s.compare_exchange_strong(before, now.tv_sec)) return;
  if (number == SIGUSR1 || now.tv_sec - before < 2) return;
  std::signal(number, SIG_DFL);
  std::raise(number);
}

}  // namespace

std::unique_ptr<JobComm> make_job_comm() {
  return started_by_mpi_launcher() ? make_mpi_job_comm() : make_solo_job_comm();
}

std::unique_ptr<Watchdog> make_watchdog(double step_timeout_s) {
  const auto end_job = [](const std::string& what, const std::function<void()>& abort_groups) {
    say(error_line(nullptr, what));
    std::promise<void> aborted;  // left behind with its thread where that hangs
    auto done = aborted.get_future();
    std::thread([abort_groups, promise = std::move(aborted)]() mutable {
      abort_groups();
      promise.set_value();
    }).detach();
    done.wait_for(kAbortLimit);
    end_job_now(static_cast<int>(ExitCode::failure));
  };
  return std::make_unique<Watchdog>(WatchdogOptions{.step_timeout_s = step_timeout_s,
                                                    .rank = launched_task().rank.value_or(0),
                                                    .stop_requested = stop_signal_received,
                                                    .first_to_report = [] { return first_to_report_here(); }},
                                    end_job);
}

std::unique_ptr<JobComm> make_job_comm(double step_timeout_s, std::unique_ptr<Watchdog>& watchdog) {
  if (!started_by_mpi_launcher() || step_timeout_s <= 0) return make_job_comm();
  watchdog = make_watchdog(step_timeout_s);
  watchdog->enter("starting MPI", Watchdog::Phase::waiting, kLongestStart);
  fault_point("start");
  auto job = make_job_comm();
  if (job->size() == 1) watchdog.reset();
  return job;
}

std::unique_ptr<JobComm> watch_job(std::unique_ptr<JobComm> job, Watchdog* watchdog) {
  return watchdog == nullptr ? std::move(job) : make_watched_job(std::move(job), *watchdog);
}

void enter_phase(JobComm& job, const char* phase, bool waits) {
  note(phase);
  if (Watchdog* watchdog = job.watchdog())
    watchdog->enter(phase, waits ? Watchdog::Phase::waiting : Watchdog::Phase::working);
}

void all_or_none(JobComm& job, const std::function<void()>& stage) {
  std::string message;
  int code = 0;
  try {
    stage();
  } catch (...) {
    const Error error = current_error();
    message = error.what();
    code = static_cast<int>(error.code());
  }
  // Ranks that load for long must not delay the error.
  if (code != 0 && !job.barrier_within(kWaitToAgree)) throw Error(static_cast<ExitCode>(code), message);
  if (code == 0) job.barrier();
  const auto codes = job.all_gather(std::to_string(code));
  const auto first = std::ranges::find_if(codes, [](const std::string& c) { return c != "0"; });
  if (first == codes.end()) return;
  const auto agreed = static_cast<ExitCode>(std::stoi(*first));
  if (first - codes.begin() == job.rank()) throw AgreedError(agreed, message);
  throw OtherRankFailed(agreed);
}

bool all_equal(JobComm& job, const std::string& mine) {
  return std::ranges::all_of(job.all_gather(mine), [&](const std::string& other) { return other == mine; });
}

std::int64_t all_min(JobComm& job, std::int64_t mine) {
  for (const std::string& other : job.all_gather(std::to_string(mine)))
    mine = std::min<std::int64_t>(mine, std::stoll(other));
  return mine;
}

std::string first_nonempty(JobComm& job, const std::string& mine) {
  for (std::string& text : job.all_gather(mine))
    if (!text.empty()) return std::move(text);
  return "";
}

void install_signal_handlers() {
  struct sigaction action = {};
  action.sa_handler = note_signal;
  action.sa_flags = SA_RESTART;
  for (const int number : {SIGTERM, SIGINT, SIGUSR1}) sigaction(number, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is a write error with a message
}

bool stop_signal_received() {
  return g_stop.load(std::memory_order_relaxed);
}

void skip_exit_handlers() noexcept {
  g_skips_exit_handlers = true;
}
void end_process(int status) {
  if (!g_skips_exit_handlers) std::exit(status);
  std::fflush(nullptr);
  std::_Exit(status);
}

std::string name_in_job(const JobComm& job) {
  return job.size() == 1 ? "" : fmt::format("rank {} of {} ({})", job.rank(), job.size(), job.host());
}

std::string error_line(const JobComm* job, const std::string& message) {
  const std::string who = job != nullptr ? name_in_job(*job) : launched_name();
  return fmt::format("ptrt: {}{}error: {}\n", who, who.empty() ? "" : ": ", message);
}

void refuse_singletons(const JobComm& job) {
  const LaunchedTask task = launched_task();
  if (job.size() > 1 || task.size.value_or(1) <= 1) return;
  if (task.rank.value_or(0) != 0) throw OtherRankFailed(ExitCode::bad_input);
  throw_bad_input(
      "MPI sees one process only, although the launcher started {0}: each would do all the work. Start them "
      "as one job, with `mpirun -n {0} ptrt ...` or `srun -n {0} --mpi=pmix ptrt ...` (`srun --mpi=list` "
      "shows "
      "what Slurm offers), or give --allow-singleton if each is meant to run alone",
      *task.size);
}

}  // namespace ptrt
