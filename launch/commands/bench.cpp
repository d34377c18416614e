// `ptrt bench`: measures requests of given lengths or from a file, which arrive at once or at a rate.
#include <cstdio>
#include <numeric>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "launch/commands/bench_report.h"
#include "launch/commands/bench_requests.h"
#include "launch/commands/commands.h"
#include "launch/commands/model/model_output.h"
#include "launch/job/process.h"
#include "launch/job/progress.h"
#include "launch/job/report_files.h"
#include "launch/job/standard_streams.h"
#include "launch/session/agreement.h"
#include "launch/session/model_session.h"
#include "launch/session/summary.h"
#include "runtime/serving/replica_share.h"
#include "runtime/speculate/oracle_drafter.h"

namespace ptrt {
namespace {

// `outputs`: where to keep the tokens of all requests; may be null.
RankReport run_once(ModelSession& session, const std::vector<Request>& requests,
                    KnownOutputs* outputs = nullptr) {
  const Placement& placement = session.plan().placement;
  RankReport report;
  report.leads_replica = placement.leads_replica();
  std::vector<std::int64_t> all(requests.size());
  std::iota(all.begin(), all.end(), 0);
  const auto mine = requests_of_replica(requests, all, placement.replicas, placement.replica);
  Engine::Hooks hooks;
  hooks.stop_requested = stop_signal_received;
  hooks.completed = [&](Completion&& completion) {
    if (completion.failed())
      throw_failure(
          "the logits of output token {} of request {} are not finite: the model has weights that "
          "are not, or too large (inspect --verify finds the former)",
          completion.not_finite_at, completion.request);
    const Request& request = requests[static_cast<std::size_t>(completion.request)];
    if (outputs != nullptr) (*outputs)[request.line] = completion.tokens;
    if (!report.leads_replica) return;
    report.timings.push_back({static_cast<std::int64_t>(request.tokens.size()),
                              static_cast<std::int64_t>(completion.tokens.size()),
                              completion.first_token_s - request.arrival_s,
                              completion.finish_s - request.arrival_s, std::move(completion.gaps_s)});
  };
  if (!session.run(Task::generate, requests, mine, hooks)) throw_failure("stopped by a signal");
  report.counters = session.engine().counters();
  return report;
}

// On rank 0, which writes them, before any weight is loaded.
void check_reports_of(const BenchOptions& options, const ModelSession& session) {
  std::vector<NamedFile> inputs{{"the dataset", options.dataset},
                                {"the configuration", options.random_weights}};
  if (session.model().file)
    for (NamedFile& file : files_of(*session.model().file)) inputs.push_back(std::move(file));
  std::vector<NamedFile> outputs = session.observed_files();
  outputs.push_back({"--json", options.json});
  outputs.push_back({"--csv", options.csv});
  check_reports(outputs, inputs);
}

// Rank 0's file, on every rank.
std::string read_dataset(const BenchOptions& options, JobComm& job) {
  if (options.dataset.empty()) return "";
  std::string text;
  all_or_none(job, [&] {
    if (job.rank() == 0) text = read_text_file(options.dataset, "the dataset");
  });
  return job.broadcast(text);
}

std::string heading(const BenchCell& cell) {
  if (cell.input_len == 0) return "";
  return fmt::format("{} requests, {} tokens in, {} out\n", cell.requests.size(), cell.input_len,
                     cell.output_len);
}

// Runs the requests without drafts, whose results are the drafts then.
void learn_outputs(const BenchOptions& options, ModelSession& session, const BenchCell& cell) {
  if (!options.forced_acceptance || options.run.drafts == 0) return;
  session.set_drafters(nullptr);
  std::vector<Request> requests = cell.requests;
  for (Request& request : requests) request.arrival_s = 0;
  const auto outputs = std::make_shared<KnownOutputs>();
  run_once(session, requests, outputs.get());
  session.set_drafters(make_oracle_drafters(outputs, options.run.drafts, *options.forced_acceptance,
                                            session.config().vocab_size));
}

void warm_up(const BenchOptions& options, ModelSession& session, const BenchCell& cell) {
  if (options.warmup == 0) return;
  std::vector<Request> requests;
  for (std::int64_t i = 0; i < options.warmup; i++) {
    requests.push_back(cell.requests[static_cast<std::size_t>(i) % cell.requests.size()]);
    requests.back().arrival_s = 0;
  }
  run_once(session, requests);
}

}  // namespace

void run_bench(const BenchOptions& options, JobComm& job, const ModelMetadata* known) {
  ModelSession session(options.run, job, known, options.random_weights);
  all_or_none(job, [&] {
    if (job.rank() == 0) check_reports_of(options, session);
  });
  const std::string dataset = read_dataset(options, job);
  std::vector<BenchCell> cells;
  all_or_none(job, [&] { cells = bench_cells(options, session, dataset); });
  for (const BenchCell& cell : cells) agree_on_requests(job, cell.requests);
  session.load(options.seed);
  const bool prints = job.rank() == 0 && !options.run.quiet;
  if (prints) say(describe_run(session) + "\n");

  std::vector<nlohmann::ordered_json> runs;
  RunSummary summary;
  for (const BenchCell& cell : cells) {
    learn_outputs(options, session, cell);
    warm_up(options, session, cell);
    job.barrier();
    const RankReport report = run_once(session, cell.requests);
    job.barrier();
    summary = gather_summary(job, report);
    if (prints) print_out("{}", emulation_notice(session));
    if (prints && cells.size() > 1) print_out("{}", heading(cell));
    if (prints) print_out("{}", summary_table(summary, SummaryKind::bench));
    if (job.rank() == 0) runs.push_back(bench_json(options, session, cell, summary));
  }
  session.write_observations(&summary);
  all_or_none(job, [&] {
    if (job.rank() != 0) return;
    if (!options.json.empty()) write_json(options.json, runs);
    if (!options.csv.empty()) write_csv(options.csv, runs);
  });
}

}  // namespace ptrt
