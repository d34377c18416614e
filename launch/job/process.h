// The process as one rank of a job: start-up, errors that all ranks agree on, signals.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/base/error.h"
#include "runtime/comm/track_comm.h"

namespace ptrt {

// MPI when a launcher started this process, else a job of one rank without MPI.
std::unique_ptr<JobComm> make_job_comm();

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
// once. SIGBUS, raised by a page of a mapped file that cannot be read, is reported as an error of this rank.
void install_signal_handlers(const JobComm& job);
bool stop_signal_received();

// "ptrt: error: …", under a launcher with rank and host.
std::string error_line(const JobComm* job, const std::string& message);

}  // namespace ptrt
