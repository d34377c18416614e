// `ptrt generate` and `ptrt score`: a file of requests in, a file of results out.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <optional>

#include "kernels/base/error.h"
#include "kernels/base/output_file.h"
#include "launch/commands/chat_lines.h"
#include "launch/commands/commands.h"
#include "launch/commands/request_run.h"
#include "launch/commands/shard_results.h"
#include "launch/commands/stream_run.h"
#include "launch/job/process.h"
#include "launch/job/progress.h"
#include "launch/job/standard_streams.h"
#include "launch/jsonl/request_stream.h"
#include "launch/jsonl/result_lines.h"
#include "launch/session/model_session.h"
#include "launch/session/summary.h"
#include "launch/streams/compression.h"
#include "launch/streams/request_input.h"
#include "runtime/job/fault.h"
#include "runtime/journal/finished_run.h"
#include "runtime/journal/journal.h"
#include "runtime/journal/shard_record.h"

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kUnknown = std::numeric_limits<std::int64_t>::max();  // how many requests there are

class Batch {
 public:
  Batch(const BatchOptions& options, JobComm& job, const ModelMetadata* known)
      : options_(options), job_(job), session_(options.run, job, known) {}

  void run() {
    try {
      run_all();
    } catch (...) {
      keep_finished();
      throw;
    }
  }

 private:
  void run_all() {
    start_ = Clock::now();
    enter_phase(job_, "reading the requests");
    scan_requests();
    if (is_finished_already()) return;
    load();
    enter_phase(job_, "opening the journal");
    if (!open_journal()) return;
    if (job_.rank() == 0 && !options_.run.quiet) say(describe_run(session_) + "\n");
    const RankReport report = run_requests();
    const RunSummary summary = whole_summary(gather_summary(job_, report));
    enter_phase(job_, "publishing the results");
    all_or_none(job_, [&] {
      if (job_.rank() == 0) publish();
    });
    session_.write_observations(&summary);
    all_or_none(job_, [&] {
      if (job_.rank() == 0) tell(summary);
    });
  }

  // After a failure.
  void keep_finished() {
    if (!stream_) return;
    try {
      if (const std::string kept = stream_->end_early(); !kept.empty()) say(kept + "\n");
    } catch (const Error&) {  // the run ends with the first failure
    }
  }

  bool is_shard() const { return !options_.shard.empty(); }

  std::vector<NamedFile> outputs() const {
    std::vector<NamedFile> files = session_.observed_files();
    if (to_standard_output(options_)) return files;
    files.insert(files.end(), {{"-o", options_.output},
                               {"the journal", journal_path(options_.output)},
                               {"the file", finished_path(options_.output)}});
    if (is_shard()) files.push_back({"the file", shard_record_path(options_.output)});
    return files;
  }
  // The requests, and all files of the model that are there.
  std::vector<NamedFile> inputs() const {
    std::vector<NamedFile> files = {{"the model", options_.run.model}};
    for (const std::string& path : options_.requests)
      files.push_back({"the requests", path == "-" ? "/dev/stdin" : path});
    if (!options_.chat_template.empty()) files.push_back({"the chat template", options_.chat_template});
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

  // Rank 0 looks at the file and checks where the results go, before any rank loads the model. Its lines are read
  // while they run.
  void scan_requests() {
    choose_shard();
    all_or_none(job_, [&] {
      if (job_.rank() != 0) return;
      check_outputs(outputs(), inputs());
      session_.check_observed();
      if (!to_standard_output(options_)) Journal::check_output(options_.output, options_.resume);
      if (is_shard()) read_shard_record(options_.output);  // what it would replace is this program's
      input_.emplace(options_.requests);
      if (is_stream_run(options_, *input_)) stream_.emplace(options_, *input_);
      if (!input_->is_stream()) file_ = ptrt::scan_requests(*input_, shard_);
      chat_.emplace(options_, session_.model(), input_->is_stream() || file_.may_chat);
    });
  }

  // How many results there will be, where that is known.
  std::optional<std::int64_t> total() const {
    return input_->is_stream() ? std::nullopt : std::optional(lines());
  }

  // That have a result here.
  std::int64_t lines() const { return file_.requests; }
  // In the journal a line has its place among these, blank ones included.
  std::int64_t places() const { return shard_.lines_of(file_.lines); }

  void load() {
    const auto start = Clock::now();
    session_.load();
    load_s_ = seconds_since(start);
  }

  // What the results depend on, apart from the shard.
  BatchIdentity identity(const std::string& model) const {
    const char* task = options_.task == Task::score ? "score" : "generate";
    return {fmt::format("{}{}{}{}-{}{}", options_.unordered ? kUnordered : "", task,
                        options_.ignore_unknown_fields ? "-ignoring" : "", options_.timings ? "-timings" : "",
                        model, chat_ ? chat_->identity() : ""),
            file_.digest};
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
      if (!is_finished(options_.output, digest(batch), lines(), session_.kv_tokens())) return;
      if (is_shard()) record_finished_shard(batch);
      finished = "yes";
      if (!options_.run.quiet)
        say(fmt::format(
            "{} is complete: {} results of an earlier run with the same requests, model and options\n",
            options_.output, lines()));
    });
    return !job_.broadcast(finished).empty();
  }

  std::string digest(const BatchIdentity& batch) const {
    return is_shard() ? fmt::format("{}-{}", batch.digest(), shard_.text()) : batch.digest();
  }

  // A record that is not there any more is made again, of the results.
  void record_finished_shard(const BatchIdentity& batch) {
    const FinishedRun results = *read_finished(options_.output);
    if (!results.most_tokens)
      throw_bad_input(
          "{} does not say how much of the KV cache the requests needed: without --resume {} is replaced",
          finished_path(options_.output), options_.output);
    if (results.kv_tokens > 0) kv_cache_exceeded_ = find_kv_cache_exceeded(options_.output, shard_, file_);
    record_shard(batch, results);
  }

  // What `ptrt merge` needs, beside the results.
  void record_shard(const BatchIdentity& batch, const FinishedRun& results) const {
    write_shard_record(options_.output, make_shard_record(batch, shard_, file_, kv_cache_exceeded_, results));
  }

  // Rank 0 opens or continues the journal. False when nothing is left to do.
  bool open_journal() {
    identity_ = identity(session_.digest());
    if (is_finished_already(identity_)) return false;
    all_or_none(job_, [&] {
      if (job_.rank() != 0) return;
      if (stream_) {
        progress_.emplace(total(), 0, options_.shown_progress());
        session_.note_requests(total().value_or(0), 0);
        return;
      }
      // With the pool of today a request may fit that did not, and the host may have what it lacked.
      const JournalOptions journal{.runs_again = may_have_result,
                                   .places = places(),
                                   .unordered = options_.unordered,
                                   .encode = results_encoding(options_.output)};
      journal_.emplace(options_.output, digest(identity_), lines(), options_.resume, journal);
      done_before_ = journal_->count();
      for (std::int64_t place = 0; is_shard() && place < places(); place++)
        earlier_.push_back(journal_->has(place));
      progress_.emplace(lines(), journal_->count(), options_.shown_progress());
      session_.note_requests(lines(), journal_->count());
    });
    return true;
  }

  static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  void store(std::span<const ResultCollector::Result> results) {
    fault_point("store");
    if (stream_) {
      stream_->store(results);
    } else {
      std::vector<Journal::Result> lines;
      for (const auto& [line, json] : results) lines.push_back({shard_.place_of(line), json});
      journal_->append(lines);
    }
    for (std::size_t i = 0; i < results.size(); i++) progress_->advance();
    if (stream_)
      session_.note_requests(total().value_or(stream_->taken()), stream_->count());
    else
      session_.note_done(std::ssize(results));
  }

  void store_rejected(std::span<const StreamedLine> lines) {
    std::vector<ResultCollector::Result> results;
    for (const auto& [number, line, request] : lines) {
      if (line.error.code == kKvCacheExceeded) kv_cache_exceeded_.push_back(number);
      results.push_back({number, error_result(line, number)});
    }
    rejected_ += std::ssize(lines);
    store(results);
  }

  RequestParser parser(const RequestLimits& limits, IgnoredFields& ignored) {
    RequestParser parser(options_.task, session_.config(), session_.tokenizer(), limits, file_.lines,
                         {&chat_->renderer(), &chat_->outputs()});
    if (options_.ignore_unknown_fields) parser.ignore_unknown_fields(ignored);
    return parser;
  }

  Supply next_line(RequestStream& stream, StreamedLine& line) {
    const Supply supply = stream.next(line);
    if (supply == Supply::line && line.runs())
      most_tokens_ = std::max(most_tokens_, line.request.cached_tokens());
    return supply;
  }

  // The results that a shard found in its journal do not say how much of the pool they needed, which may have been
  // another one: their lines are read once more.
  void note_earlier_tokens() {
    if (!is_shard() || done_before_ == 0) return;
    IgnoredFields again;
    RequestStream stream(
        *input_, parser({std::numeric_limits<std::int64_t>::max()}, again), [this](auto line) {
          return shard_.has(line) && earlier_[static_cast<std::size_t>(shard_.place_of(line))];
        });
    for (StreamedLine line; next_line(stream, line) != Supply::end;) {
    }
  }

  // Rank 0 reads the lines of its shard that have no result yet.
  RequestDealer::Source open_source() {
    if (journal_ && journal_->count() == lines()) return [](StreamedLine&) { return Supply::end; };
    const auto wanted = [this](std::int64_t line) {
      return shard_.has(line) && !(journal_ && journal_->has(shard_.place_of(line)));
    };
    auto stream = std::make_shared<RequestStream>(*input_, parser({session_.kv_tokens()}, ignored_), wanted);
    const auto next = [this, stream](StreamedLine& line) {
      try {
        return next_line(*stream, line);
      } catch (const HelperStopped&) {
        return Supply::none_yet;  // the line has no result: nothing more is dealt
      }
    };
    return stream_ ? stream_->source(next) : next;
  }

  RankReport run_requests() {
    std::optional<RequestSupply> supply;
    if (job_.rank() == 0) {
      supply.emplace();
      supply->source = open_source();
      supply->requests = stream_ ? total().value_or(kUnknown) : lines() - journal_->count();
      supply->store = [this](std::span<const ResultCollector::Result> results) { store(results); };
      supply->rejected = [this](std::span<const StreamedLine> lines) { store_rejected(lines); };
      if (stream_) supply->awaits_input = [this] { return stream_->awaits_input(); };
    }
    RankReport report = RequestRun(options_, job_, session_).run(std::move(supply));
    wall_s_ = seconds_since(start_) - load_s_;
    job_.barrier();
    return report;
  }

  // That of the ranks, over the time of the whole run. On rank 0.
  RunSummary whole_summary(RunSummary summary) const {
    count_over(summary, wall_s_);
    summary.load_s = load_s_;
    summary.failed += rejected_;
    return summary;
  }

  // Where all results are there.
  void publish() {
    progress_->end();
    if (!is_whole()) return;
    fault_point("publish");
    if (stream_) return stream_->publish();
    note_earlier_tokens();
    journal_->publish([&](FinishedRun& results) {
      if (is_shard()) results.most_tokens = most_tokens_;
      if (!kv_cache_exceeded_.empty()) results.kv_tokens = session_.kv_tokens();
      if (is_shard()) record_shard(identity_, results);
    });
  }

  bool is_whole() const { return stream_ ? stream_->is_whole() : journal_->count() == lines(); }

  // How it ended.
  void tell(const RunSummary& summary) {
    if (!ignored_.empty()) say(fmt::format("ptrt: ignored fields of requests: {}\n", ignored_.text()));
    if (!is_whole() && stream_) throw Error(ExitCode::failure, "stopped by a signal");
    if (!is_whole())
      throw Error(ExitCode::stopped,
                  fmt::format("stopped by a signal with {} of {} results in {}: continue with --resume",
                              journal_->count(), lines(), journal_->path()));
    if (options_.run.quiet) return;
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
  BatchIdentity identity_;
  // Rank 0:
  std::optional<RequestInput> input_;
  RequestFileFacts file_;
  std::optional<ChatLines> chat_;
  std::vector<std::int64_t> kv_cache_exceeded_;  // lines that do not fit the pool
  std::int64_t most_tokens_ = 0;                 // of the pool, for one of the others
  std::vector<bool> earlier_;                    // a shard's lines with a result of an earlier run
  std::int64_t rejected_ = 0;                    // lines that cannot be run
  IgnoredFields ignored_;
  std::int64_t done_before_ = 0;
  std::optional<Journal> journal_;
  std::optional<StreamRun> stream_;  // instead of the journal
  std::optional<Progress> progress_;
};

}  // namespace

void run_batch(const BatchOptions& options, JobComm& job, const ModelMetadata* known) {
  Batch(options, job, known).run();
}

}  // namespace ptrt
