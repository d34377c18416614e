#include "launch/job/process.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <ctime>
#include <exception>
#include <thread>

#include "runtime/comm/mpi_comm.h"

namespace ptrt {
namespace {

constexpr double kWaitToAgree = 3;  // seconds

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

// The message of a SIGBUS, formatted beforehand: a handler may only write it. Full shared memory raises
// SIGBUS too.
constexpr const char* kBusError =
    "a mapped model file could not be read: an I/O error, or it was truncated while in use "
    "(or /dev/shm is full)";
char g_bus_error[512];
std::size_t g_bus_error_bytes = 0;

void report_bus_error(int) {
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, g_bus_error, g_bus_error_bytes);
  _exit(static_cast<int>(ExitCode::failure));
}

}  // namespace

std::unique_ptr<JobComm> make_job_comm() {
  return started_by_mpi_launcher() ? make_mpi_job_comm() : make_solo_job_comm();
}

void all_or_none(JobComm& job, const std::function<void()>& stage) {
  std::string message;
  int code = 0;
  try {
    stage();
  } catch (const Error& e) {
    message = e.what();
    code = static_cast<int>(e.code());
  } catch (const std::exception& e) {
    message = e.what();
    code = static_cast<int>(ExitCode::failure);
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

void install_signal_handlers(const JobComm& job) {
  const std::string line = error_line(&job, kBusError);
  g_bus_error_bytes = line.copy(g_bus_error, sizeof(g_bus_error));
  struct sigaction action = {};
  action.sa_handler = note_signal;
  action.sa_flags = SA_RESTART;
  for (const int number : {SIGTERM, SIGINT, SIGUSR1}) sigaction(number, &action, nullptr);
  action.sa_handler = report_bus_error;
  sigaction(SIGBUS, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is a write error with a message
}

bool stop_signal_received() {
  return g_stop.load(std::memory_order_relaxed);
}

std::string error_line(const JobComm* job, const std::string& message) {
  if (job == nullptr || job->size() == 1) return fmt::format("ptrt: error: {}\n", message);
  return fmt::format("ptrt: rank {} of {} ({}): error: {}\n", job->rank(), job->size(), job->host(), message);
}

}  // namespace ptrt
