// `ptrt generate` and `ptrt score`: a file of requests in, a file of results out.
#include <xxhash.h>

#include <chrono>
#include <optional>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "kernels/base/output_file.h"
#include "launch/commands/commands.h"
#include "launch/job/process.h"
#include "launch/job/progress.h"
#include "launch/job/standard_streams.h"
#include "launch/jsonl/request_file.h"
#include "launch/jsonl/result_collector.h"
#include "launch/jsonl/result_lines.h"
#include "launch/session/agreement.h"
#include "launch/session/model_session.h"
#include "launch/session/summary.h"
#include "runtime/job/fault.h"
#include "runtime/journal/finished_run.h"
#include "runtime/journal/journal.h"
#include "runtime/serving/replica_share.h"

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;

class Batch {
 public:
  Batch(const BatchOptions& options, JobComm& job, const ModelMetadata* known)
      : options_(options), job_(job), session_(options.run, job, known) {}

  void run() {
    start_ = Clock::now();
    enter_phase(job_, "reading the requests");
    read_requests();
    if (is_finished_already()) return;
    load();
    enter_phase(job_, "opening the journal");
    if (!open_journal()) return;
    if (job_.rank() == 0 && !options_.run.quiet) say(describe_run(session_) + "\n");
    const RankReport report = run_requests();
    const RunSummary summary = gather_summary(job_, report);
    enter_phase(job_, "publishing the results");
    all_or_none(job_, [&] {
      if (job_.rank() == 0) close(summary);
    });
  }

 private:
  std::vector<NamedFile> outputs() const {
    return {{"-o", options_.output},
            {"the journal", journal_path(options_.output)},
            {"the file", finished_path(options_.output)}};
  }
  // The requests, and all files of the model that are there.
  std::vector<NamedFile> inputs() const {
    std::vector<NamedFile> files = {{"the requests", options_.requests}, {"the model", options_.run.model}};
    if (session_.model().file)
      for (std::int64_t track = 0; track < session_.config().tracks; track++)
        files.push_back({"the model", session_.model().file->track_file(track)});
    return files;
  }

  // Rank 0 reads the file and checks where the results go, before any rank loads the model.
  void read_requests() {
    std::string text;
    all_or_none(job_, [&] {
      if (job_.rank() != 0) return;
      check_outputs(outputs(), inputs());
      Journal::check_output(options_.output, options_.resume);
      text = read_text_file(options_.requests, "the requests");
    });
    text = job_.broadcast(text);
    all_or_none(job_, [&] {
      file_ = parse_requests(text, options_.requests, options_.task, session_.config(), session_.tokenizer(),
                             {session_.kv_tokens()});
    });
    agree_on_requests(job_, file_.requests);
    requests_digest_ = XXH3_64bits(text.data(), text.size());
    // Where the KV pool is too small for a line, its size is part of the digest: with a larger pool the line
    // has a result.
    for (std::size_t i = 0; i < file_.lines.size(); i++)
      if (file_.lines[i].error.code == "kv_cache_exceeded")
        requests_digest_ = XXH3_64bits_withSeed(&i, sizeof i, requests_digest_);
  }

  void load() {
    const auto start = Clock::now();
    session_.load();
    load_s_ = seconds_since(start);
  }

  // Of what the results depend on, with that of the model.
  std::string digest_with(const std::string& model) const {
    return fmt::format("{}-{}-{:016x}", options_.task == Task::score ? "score" : "generate", model,
                       requests_digest_);
  }

  // Whether an earlier run has finished the same job, where that is known before the model is loaded.
  bool is_finished_already() {
    if (!options_.resume) return false;
    const auto model = session_.digest_before_load();
    return model && is_finished_already(digest_with(*model));
  }

  // Rank 0 looks, and all ranks know.
  bool is_finished_already(const std::string& digest) {
    if (!options_.resume) return false;
    std::string finished;
    all_or_none(job_, [&] {
      if (job_.rank() != 0 || Journal::exists(options_.output)) return;
      const auto lines = static_cast<std::int64_t>(file_.lines.size());
      if (!is_finished(options_.output, digest, lines)) return;
      finished = "yes";
      if (!options_.run.quiet)
        say(fmt::format(
            "{} is complete: {} results of an earlier run with the same requests, model and options\n",
            options_.output, lines));
    });
    return !job_.broadcast(finished).empty();
  }

  // Opens or continues the journal, writes the error lines, and tells all ranks which lines are done. False when
  // nothing is left to do.
  bool open_journal() {
    const std::string digest = digest_with(session_.digest());
    if (is_finished_already(digest)) return false;
    std::string done;
    all_or_none(job_, [&] {
      if (job_.rank() != 0) return;
      const auto lines = static_cast<std::int64_t>(file_.lines.size());
      journal_.emplace(options_.output, digest, lines, options_.resume);
      done_before_ = journal_->count();
      for (std::int64_t i = 0; i < lines; i++) {
        const RequestLine& line = file_.lines[static_cast<std::size_t>(i)];
        if (line.request < 0 && !journal_->has(i)) journal_->append(i, error_result(line, i));
        done += journal_->has(i) ? '1' : '0';
      }
      progress_.emplace(lines, journal_->count(), options_.shown_progress());
    });
    done = job_.broadcast(done);
    for (std::size_t i = 0; i < file_.requests.size(); i++)
      if (done[static_cast<std::size_t>(file_.requests[i].line)] == '0')
        pending_.push_back(static_cast<std::int64_t>(i));
    return true;
  }

  static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  ResultCollector::Result format(const Completion& completion) const {
    const Request& request = file_.requests[static_cast<std::size_t>(completion.request)];
    const RequestLine& line = file_.lines[static_cast<std::size_t>(request.line)];
    return {request.line,
            options_.task == Task::score
                ? score_result(line, request, completion)
                : generate_result(line, request, completion, session_.tokenizer().tokenizer.get())};
  }

  void store(const ResultCollector::Result& result) {
    journal_->append(result.line, result.json);
    progress_->advance();
  }

  RankReport run_requests() {
    const Placement& placement = session_.plan().placement;
    RankReport report;
    report.leads_replica = placement.leads_replica();
    std::optional<ResultCollector> collector;
    if (placement.leads_replica())
      collector.emplace(
          job_, [this](const Completion& completion) { return format(completion); },
          journal_ ? [this](const ResultCollector::Result& result) { store(result); }
                   : ResultCollector::Store(),
          job_.rank() == 0 ? static_cast<int>(placement.replicas - 1) : 0, session_.plan().cores.units());

    Engine::Hooks hooks;
    hooks.stop_requested = stop_signal_received;
    hooks.completed = [&](Completion&& completion) {
      if (!collector) return;
      if (completion.failed())
        report.failed++;
      else
        report.timings.push_back(timing_of(completion));
      collector->deliver(std::move(completion));
    };
    const auto mine = requests_of_replica(file_.requests, pending_, placement.replicas, placement.replica);
    session_.run(options_.task, file_.requests, mine, hooks);
    fault_point("finish");
    enter_phase(job_, "collecting the results", true);
    if (collector) collector->finish();
    wall_s_ = seconds_since(start_) - load_s_;
    job_.barrier();
    report.counters = session_.engine().counters();
    return report;
  }

  RequestTiming timing_of(const Completion& completion) const {
    const Request& request = file_.requests[static_cast<std::size_t>(completion.request)];
    return {static_cast<std::int64_t>(request.tokens.size()),
            static_cast<std::int64_t>(completion.tokens.size()),
            completion.first_token_s,
            completion.finish_s,
            {}};
  }

  void close(RunSummary summary) {
    progress_->end();
    const auto lines = static_cast<std::int64_t>(file_.lines.size());
    if (journal_->count() < lines)
      throw Error(ExitCode::stopped,
                  fmt::format("stopped by a signal with {} of {} results in {}: continue with --resume",
                              journal_->count(), lines, journal_->path()));
    fault_point("publish");
    journal_->publish();
    if (options_.run.quiet) return;
    count_over(summary, wall_s_);
    summary.load_s = load_s_;
    summary.failed += lines - static_cast<std::int64_t>(file_.requests.size());
    const auto kind = options_.task == Task::score ? SummaryKind::score : SummaryKind::generate;
    say(summary_table(summary, kind));
    if (done_before_ > 0) say(fmt::format("  {} results are from an earlier run\n", done_before_));
  }

  const BatchOptions& options_;
  JobComm& job_;
  Clock::time_point start_ = Clock::now();  // of reading the requests
  double load_s_ = 0;
  double wall_s_ = 0;  // from reading the requests to the last result, without loading
  ModelSession session_;
  RequestFile file_;
  std::uint64_t requests_digest_ = 0;
  std::vector<std::int64_t> pending_;  // requests without a result yet
  std::int64_t done_before_ = 0;
  std::optional<Journal> journal_;    // rank 0
  std::optional<Progress> progress_;  // rank 0
};

}  // namespace

void run_batch(const BatchOptions& options, JobComm& job, const ModelMetadata* known) {
  Batch(options, job, known).run();
}

}  // namespace ptrt
