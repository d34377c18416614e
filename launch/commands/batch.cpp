// `ptrt generate` and `ptrt score`: a file of requests in, a file of results out.
#include <xxhash.h>

#include <chrono>
#include <cstdlib>
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
#include "runtime/journal/shard_record.h"
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
  bool is_shard() const { return !options_.shard.empty(); }

  std::vector<NamedFile> outputs() const {
    std::vector<NamedFile> files = {{"-o", options_.output},
                                    {"the journal", journal_path(options_.output)},
                                    {"the file", finished_path(options_.output)}};
    if (is_shard()) files.push_back({"the file", shard_record_path(options_.output)});
    return files;
  }
  // The requests, and all files of the model that are there.
  std::vector<NamedFile> inputs() const {
    std::vector<NamedFile> files = {{"the requests", options_.requests}, {"the model", options_.run.model}};
    if (session_.model().file)
      for (std::int64_t track = 0; track < session_.config().tracks; track++)
        files.push_back({"the model", session_.model().file->track_file(track)});
    return files;
  }

  // Rank 0 knows the environment of a job array, and all ranks its shard.
  void choose_shard() {
    std::string text;
    all_or_none(job_, [&] {
      if (job_.rank() != 0 || !is_shard()) return;
      text = options_.shard == "slurm" ? shard_of_slurm_array(std::getenv).text() : options_.shard;
    });
    if (is_shard()) shard_ = *parse_shard(job_.broadcast(text));
  }

  // Rank 0 reads the file and checks where the results go, before any rank loads the model.
  void read_requests() {
    std::string text;
    choose_shard();
    all_or_none(job_, [&] {
      if (job_.rank() != 0) return;
      check_outputs(outputs(), inputs());
      Journal::check_output(options_.output, options_.resume);
      if (is_shard()) read_shard_record(options_.output);  // what it would replace is this program's
      text = read_text_file(options_.requests, "the requests");
    });
    text = job_.broadcast(text);
    all_or_none(job_, [&] {
      file_ = parse_requests(text, options_.requests, options_.task, session_.config(), session_.tokenizer(),
                             {session_.kv_tokens()}, shard_);
    });
    agree_on_requests(job_, file_.requests);
    requests_digest_ = XXH3_64bits(text.data(), text.size());
    for (std::int64_t i = 0; i < std::ssize(file_.lines); i++)
      if (line(i).error.code == "kv_cache_exceeded") kv_cache_exceeded_.push_back(i);
  }

  const RequestLine& line(std::int64_t number) const { return file_.lines[static_cast<std::size_t>(number)]; }
  // That have a result here: in the journal, a line has its place among these.
  std::int64_t lines() const { return shard_.lines_of(std::ssize(file_.lines)); }

  void load() {
    const auto start = Clock::now();
    session_.load();
    load_s_ = seconds_since(start);
  }

  // What the results depend on, apart from the shard.
  BatchIdentity identity(const std::string& model) const {
    return {fmt::format("{}-{}", options_.task == Task::score ? "score" : "generate", model),
            requests_digest_};
  }

  // Whether an earlier run has finished the same job, where that is known before the model is loaded.
  bool is_finished_already() {
    if (!options_.resume) return false;
    const auto model = session_.digest_before_load();
    return model && is_finished_already(identity(*model));
  }

  // Rank 0 looks, and all ranks know.
  bool is_finished_already(const BatchIdentity& batch) {
    if (!options_.resume) return false;
    std::string finished;
    all_or_none(job_, [&] {
      if (job_.rank() != 0 || Journal::exists(options_.output)) return;
      if (!is_finished(options_.output, digest(batch), lines())) return;
      if (is_shard()) record_shard(batch, *read_finished(options_.output));
      finished = "yes";
      if (!options_.run.quiet)
        say(fmt::format(
            "{} is complete: {} results of an earlier run with the same requests, model and options\n",
            options_.output, lines()));
    });
    return !job_.broadcast(finished).empty();
  }

  std::string digest(const BatchIdentity& batch) const {
    const std::string whole = batch.digest(kv_cache_exceeded_);
    return is_shard() ? fmt::format("{}-{}", whole, shard_.text()) : whole;
  }

  // What `ptrt merge` needs, beside the results.
  void record_shard(const BatchIdentity& batch, const FinishedRun& results) const {
    ShardRecord record{.batch = batch,
                       .shard = shard_,
                       .file_lines = std::ssize(file_.lines),
                       .lines = {},
                       .kv_tokens = session_.kv_tokens(),
                       .kv_cache_exceeded = kv_cache_exceeded_,
                       .bytes = results.bytes,
                       .results_crc32c = results.results_crc32c};
    if (lines() > 0) record.lines.push_back({shard_.line_at(0), lines()});
    write_shard_record(options_.output, record);
  }

  // Opens or continues the journal, writes the error lines, and tells all ranks which lines are done. False when
  // nothing is left to do.
  bool open_journal() {
    identity_ = identity(session_.digest());
    if (is_finished_already(identity_)) return false;
    std::string done;
    all_or_none(job_, [&] {
      if (job_.rank() != 0) return;
      journal_.emplace(options_.output, digest(identity_), lines(), options_.resume);
      done_before_ = journal_->count();
      for (std::int64_t place = 0; place < lines(); place++) {
        const std::int64_t number = shard_.line_at(place);
        if (line(number).request < 0 && !journal_->has(place))
          journal_->append(place, error_result(line(number), number));
        done += journal_->has(place) ? '1' : '0';
      }
      progress_.emplace(lines(), journal_->count(), options_.shown_progress());
    });
    done = job_.broadcast(done);
    for (std::size_t i = 0; i < file_.requests.size(); i++)
      if (done[static_cast<std::size_t>(shard_.place_of(file_.requests[i].line))] == '0')
        pending_.push_back(static_cast<std::int64_t>(i));
    return true;
  }

  static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  ResultCollector::Result format(const Completion& completion) const {
    const Request& request = file_.requests[static_cast<std::size_t>(completion.request)];
    const RequestLine& asked = line(request.line);
    return {request.line,
            options_.task == Task::score
                ? score_result(asked, request, completion)
                : generate_result(asked, request, completion, session_.tokenizer().tokenizer.get())};
  }

  void store(const ResultCollector::Result& result) {
    journal_->append(shard_.place_of(result.line), result.json);
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
    if (journal_->count() < lines())
      throw Error(ExitCode::stopped,
                  fmt::format("stopped by a signal with {} of {} results in {}: continue with --resume",
                              journal_->count(), lines(), journal_->path()));
    fault_point("publish");
    journal_->publish([&](const FinishedRun& results) {
      if (is_shard()) record_shard(identity_, results);
    });
    if (options_.run.quiet) return;
    count_over(summary, wall_s_);
    summary.load_s = load_s_;
    summary.failed += lines() - static_cast<std::int64_t>(file_.requests.size());
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
  Shard shard_;  // the whole file without --shard
  RequestFile file_;
  std::uint64_t requests_digest_ = 0;
  std::vector<std::int64_t> kv_cache_exceeded_;  // lines that do not fit the pool
  BatchIdentity identity_;
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
