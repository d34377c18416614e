// The process as one rank of a job: start-up, errors that all ranks agree on, signals.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/base/error.h"
#include "runtime/comm/track_comm.h"
#include "runtime/comm/watchdog.h"

namespace ptrt {

// MPI when a launcher started this process, else a job of one rank without MPI.
std::unique_ptr<JobComm> make_job_comm();

// Ends the job on every rank, with one message, when a rank is stuck, stopped or cut off (runtime/comm/watchdog.h).
std::unique_ptr<Watchdog> make_watchdog(double step_timeout_s);

// The job, with a watchdog over MPI's start where there is a launcher and a timeout; in a job of one rank
// `watchdog` is null again. Costs no exchange: whether a rank has a watchdog depends on its own command line.
std::unique_ptr<JobComm> make_job_comm(double step_timeout_s, std::unique_ptr<Watchdog>& watchdog);
// From here on the ranks' watchdogs exchange signs of life; `watchdog`, which may be null, outlives the job.
// Collective: all ranks must have agreed on their command lines.
std::unique_ptr<JobComm> watch_job(std::unique_ptr<JobComm> job, Watchdog* watchdog);

// The part of the run that the watchdog's messages name from here on, where the job has one. `waits`: whether it
// may wait for other ranks by other means than the job's collective calls.
void enter_phase(JobComm& job, const char* phase, bool waits = false);

// An error that every rank knows about, so that the job can end in order. Thrown on the rank that had it.
class AgreedError : public Error {
 public:
  using Error::Error;
};

// Thrown on the other ranks: they end with the same exit code and print nothing.
class OtherRankFailed : public Error {
 public:
  explicit OtherRankFailed(ExitCode code) : Error(code, "another rank failed") {}
};

// Runs one stage of start-up on every rank. When it throws on any of them, all ranks leave together: the
// lowest rank that failed throws its error as an AgreedError, the others throw OtherRankFailed. So a bad
// shard, or a bad option that every rank sees, causes one message and an orderly end. If the other ranks stay
// busy for more than seconds, the error is thrown unchanged, and main() ends the job at once.
void all_or_none(JobComm& job, const std::function<void()>& stage);

// Agreements between the ranks. Collective.
bool all_equal(JobComm& job, const std::string& mine);
std::int64_t all_min(JobComm& job, std::int64_t mine);
// The text of the lowest rank whose text is not empty; empty where all are.
std::string first_nonempty(JobComm& job, const std::string& mine);
// `mine` where it is the same on every rank, else `fallback`.
template <typename Enum>
Enum all_equal_or(JobComm& job, Enum mine, Enum fallback) {
  return all_equal(job, std::to_string(static_cast<int>(mine))) ? mine : fallback;
}

// SIGTERM, SIGINT, SIGUSR1 are noted, to end in order between two steps. A second SIGINT or SIGTERM kills at
// once.
void install_signal_handlers();
bool stop_signal_received();

// Throws bad_input where a launcher started several processes and MPI sees this one alone; on all but the
// first of them OtherRankFailed.
void refuse_singletons(const JobComm& job);

// For a process whose GPU may have work that never ends: end_process() then runs no exit handlers, of which CUDA's may
// wait for it.
void skip_exit_handlers() noexcept;
// Ends main().
[[noreturn]] void end_process(int status);

// "rank 2 of 4 (host)"; empty for a process that is alone.
std::string name_in_job(const JobComm& job);
// "ptrt: error: …", under a launcher with rank and host. Null: before the job exists.
std::string error_line(const JobComm* job, const std::string& message);

}  // namespace ptrt
