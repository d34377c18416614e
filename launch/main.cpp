// ptrt: a runtime for Parallel Track transformers. All errors are caught here.
#include <chrono>
#include <cstdio>
#include <thread>

#include "launch/commands/commands.h"
#include "launch/job/process.h"
#include "launch/options/command_line.h"
#include "runtime/comm/fault.h"

namespace ptrt {
namespace {

void run_command(const Command& command, JobComm& job) {
  arm_faults(job.rank());
  // Only the engine can end in order on a signal; the other commands end at once, as usual.
  if (std::holds_alternative<BatchOptions>(command) || std::holds_alternative<BenchOptions>(command))
    install_signal_handlers(job);
  if (const auto* batch = std::get_if<BatchOptions>(&command)) run_batch(*batch, job);
  if (const auto* bench = std::get_if<BenchOptions>(&command)) run_bench(*bench, job);
  if (job.rank() != 0) return;
  if (const auto* init = std::get_if<InitOptions>(&command)) run_init(*init);
  if (const auto* quantize = std::get_if<QuantizeOptions>(&command)) run_quantize(*quantize);
  if (const auto* pack = std::get_if<PackOptions>(&command)) run_pack(*pack);
  if (const auto* inspect = std::get_if<InspectOptions>(&command)) run_inspect(*inspect);
  if (const auto* plan = std::get_if<PlanOptions>(&command)) run_plan(*plan);
}

int print_error(const JobComm* job, const std::string& message, ExitCode code) {
  std::fputs(error_line(job, message).c_str(), stderr);
  std::fflush(stderr);
  return static_cast<int>(code);
}

// Ends the job on every rank at once. An error that all ranks have is printed once: the others give rank 0 a
// moment to print it.
int end_everywhere(JobComm* job, const std::string& message, ExitCode code) {
  if (job != nullptr && job->rank() != 0) std::this_thread::sleep_for(std::chrono::milliseconds(300));
  print_error(job, message, code);
  if (job != nullptr && job->size() > 1) job->abort(static_cast<int>(code));
  return static_cast<int>(code);
}

// What the parser has to say, on rank 0.
int print_outcome(const CommandLine& line, const JobComm& job) {
  if (job.rank() == 0) {
    std::fputs(line.out.c_str(), stdout);
    std::fputs(line.err.c_str(), stderr);
  }
  return *line.exit_code;
}

int run_program(int argc, char** argv) {
  std::unique_ptr<JobComm> job;
  try {
    const CommandLine line = parse_command_line(argc, argv);  // before MPI starts
    job = make_job_comm();
    if (line.exit_code) return print_outcome(line, *job);
    run_command(line.command, *job);
    return 0;
  } catch (const OtherRankFailed& e) {
    return static_cast<int>(e.code());
  } catch (const AgreedError& e) {
    return print_error(job.get(), e.what(), e.code());
  } catch (...) {
    const Error error = current_error();
    return end_everywhere(job.get(), error.what(), error.code());
  }
}

}  // namespace
}  // namespace ptrt

int main(int argc, char** argv) {
  return ptrt::run_program(argc, argv);
}
