// ptrt: a runtime for Parallel Track transformers. All errors are caught here.
#include <chrono>
#include <cstdio>
#include <optional>
#include <thread>

#include "kernels/base/host_cores.h"
#include "launch/commands/commands.h"
#include "launch/commands/model/model_commands.h"
#include "launch/job/crash_report.h"
#include "launch/job/process.h"
#include "launch/job/program_version.h"
#include "launch/job/standard_streams.h"
#include "launch/observe/job_log.h"
#include "launch/options/command_line.h"
#include "launch/session/agreement.h"
#include "runtime/job/fault.h"
#include "runtime/job/launcher.h"
#include "runtime/job/reporter.h"

namespace ptrt {
namespace {

// The options of a command that runs a model; null: another command.
const ModelRunOptions* run_options(const Command& command) {
  if (const auto* batch = std::get_if<BatchOptions>(&command)) return &batch->run;
  if (const auto* bench = std::get_if<BenchOptions>(&command)) return &bench->run;
  if (const auto* doctor = std::get_if<DoctorOptions>(&command)) return &doctor->run;
  return nullptr;
}

// What a log must not be written over, as far as the command line names it.
std::vector<NamedFile> named_inputs(const Command& command) {
  if (const auto* batch = std::get_if<BatchOptions>(&command)) {
    std::vector<NamedFile> files = {{"the model", batch->run.model}, {"the text", batch->text}};
    for (const std::string& path : batch->requests) files.push_back({"the requests", path});
    return files;
  }
  if (const auto* bench = std::get_if<BenchOptions>(&command))
    return {{"the model", bench->run.model},
            {"the dataset", bench->dataset},
            {"the configuration", bench->random_weights}};
  return {};
}

void run_command(const Command& command, JobComm& job, const ModelMetadata* known) {
  if (const ModelRunOptions* run = run_options(command)) {
    if (!run->allow_singleton) refuse_singletons(job);
    // Only the engine can end in order on a signal; the other commands end at once, as usual.
    install_signal_handlers();
  }
  if (const auto* batch = std::get_if<BatchOptions>(&command))
    batch->text.empty() ? run_batch(*batch, job, known) : run_score_text(*batch, job, known);
  if (const auto* bench = std::get_if<BenchOptions>(&command)) run_bench(*bench, job, known);
  if (job.rank() != 0) return;
  if (const auto* init = std::get_if<InitOptions>(&command)) run_init(*init);
  if (const auto* quantize = std::get_if<QuantizeOptions>(&command)) run_quantize(*quantize, known);
  if (const auto* pack = std::get_if<PackOptions>(&command)) run_pack(*pack, known);
  if (const auto* inspect = std::get_if<InspectOptions>(&command)) run_inspect(*inspect, known);
  if (const auto* merge = std::get_if<MergeOptions>(&command)) run_merge(*merge);
  if (const auto* plan = std::get_if<PlanOptions>(&command)) run_plan(*plan);
}

int print_error(const JobComm* job, const std::string& message, ExitCode code) {
  std::fflush(stdout);  // what was printed comes first
  say(error_line(job, message));
  return static_cast<int>(code);
}

// Ends the job on every rank at once. An error that all ranks have is printed once: the others give rank 0 a
// moment to print it, and then the launcher the time to end them.
int end_everywhere(JobComm* job, const std::string& message, ExitCode code) {
  if (job != nullptr && job->rank() != 0) std::this_thread::sleep_for(std::chrono::milliseconds(300));
  if (job != nullptr && job->size() > 1 && !first_to_report_here())
    std::this_thread::sleep_for(std::chrono::duration<double>(kLauncherEndsJob));
  print_error(job, message, code);
  if (job != nullptr && job->size() > 1) job->abort(static_cast<int>(code));
  return static_cast<int>(code);
}

// What the parser has to say, on rank 0.
int print_outcome(const CommandLine& line, const JobComm& job) {
  if (job.rank() == 0) {
    write_output(line.out);
    flush_output();
    say(line.err);
  }
  return *line.exit_code;
}

// Ranks may have been started with different programs or options.
void agree_on_start(JobComm& job, const CommandLine& line) {
  if (job.size() == 1) return;
  Facts facts = line.common;
  // The doctor says itself which ranks have another program.
  if (!std::holds_alternative<DoctorOptions>(line.command)) facts["version"] = program_version();
  agree_on(job, "how they were started", facts);
}

int run_program(int argc, char** argv) {
  std::unique_ptr<Watchdog> watchdog;  // outlives the job
  std::unique_ptr<JobComm> job;
  try {
    open_standard_streams();
    install_crash_handlers(launched_name());
    const CommandLine line = parse_command_line(argc, argv);  // before MPI starts
    arm_faults(launched_task().rank.value_or(0));
    std::unique_ptr<ModelProbe> probe = start_probe(line.command);  // before there are threads
    const ModelRunOptions* run = run_options(line.command);
    job = make_job_comm(run != nullptr ? run->step_timeout_s : 0, watchdog);
    name_in_crash_reports(name_in_job(*job));
    agree_on_start(*job, line);
    job = watch_job(std::move(job), watchdog.get());
    if (line.exit_code) return print_outcome(line, *job);
    if (run != nullptr && !run->log_file.empty())
      all_or_none(*job, [&] { open_job_log(run->log_file, *job, named_inputs(line.command)); });
    if (!probe && job->size() == 1) probe = start_own_probe(line.command);
    // The first look at the topology takes milliseconds; under a launcher the probe runs during MPI_Init.
    if (probe && run != nullptr && job->size() == 1) allowed_cores();
    if (const auto* doctor = std::get_if<DoctorOptions>(&line.command)) {
      if (!doctor->run.allow_singleton) refuse_singletons(*job);
      run_doctor(*doctor, *job, probe.get());
      return 0;
    }
    std::optional<ModelMetadata> known;
    all_or_none(*job, [&] {
      if (probe) known = probe->finish();
    });
    run_command(line.command, *job, known ? &*known : nullptr);
    flush_output();
    note("done");
    fault_point("end");
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
  ptrt::end_process(ptrt::run_program(argc, argv));
}
