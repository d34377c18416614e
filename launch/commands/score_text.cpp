// `ptrt score MODEL --text FILE`: the perplexity of a text by sliding window.
//
// Every rank holds the text's token ids once. Windows become requests a round at a time, so that memory does
// not grow with window / stride. Of a window only the sum is kept, by rank 0 and in the journal of -o.
#include <xxhash.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "launch/commands/commands.h"
#include "launch/commands/model/model_output.h"
#include "launch/job/process.h"
#include "launch/job/progress.h"
#include "launch/job/report_files.h"
#include "launch/job/standard_streams.h"
#include "launch/jsonl/result_collector.h"
#include "launch/session/model_session.h"
#include "launch/session/summary.h"
#include "model_io/text/unicode.h"
#include "runtime/job/fault.h"
#include "runtime/journal/finished_run.h"
#include "runtime/journal/journal.h"
#include "runtime/serving/text_windows.h"

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr std::int64_t kRoundTokens = std::int64_t{1} << 22;  // of the requests of a round, 16 MiB

void check_utf8(const std::string& text, const std::string& path) {
  const std::string sound = sanitize_utf8(text);
  const auto [bad, replaced] = std::ranges::mismatch(text, sound);
  if (bad != text.end())
    throw_bad_input("{}: not valid UTF-8 at byte {} (0x{:02x})", path, bad - text.begin(),
                    static_cast<unsigned char>(*bad));
}

// What collector and journal hold of a window, and its sum again: a double is written with all its digits.
ResultCollector::Result window_result(const Completion& completion) {
  const double sum = std::accumulate(completion.logprobs.begin(), completion.logprobs.end(), 0.0);
  return {completion.request, Json{{"sum_logprob", sum}}.dump()};
}
double sum_of(const std::string& window_json) {
  return Json::parse(window_json).at("sum_logprob").get<double>();
}

class TextScore {
 public:
  TextScore(const BatchOptions& options, JobComm& job, const ModelMetadata* known)
      : options_(options), job_(job), session_(options.run, job, known) {}

  void run() {
    all_or_none(job_, [&] { choose_window(); });
    enter_phase(job_, "reading the text");
    read_tokens();
    session_.load();
    enter_phase(job_, "opening the journal");
    windows_.emplace(std::ssize(tokens_), window_, stride_);
    if (is_finished_already()) return;
    choose_windows();
    if (job_.rank() == 0 && !options_.run.quiet) say(describe_run(session_) + "\n");
    const auto start = Clock::now();
    score_windows();
    const std::chrono::duration<double> seconds = Clock::now() - start;
    enter_phase(job_, "publishing the results");
    all_or_none(job_, [&] {
      if (job_.rank() == 0) publish();
    });
    session_.write_observations(nullptr);
    all_or_none(job_, [&] {
      if (job_.rank() == 0) tell(seconds.count());
    });
  }

 private:
  bool has_journal() const { return !options_.output.empty(); }

  // Without --window the model's whole context, without --stride half of the window.
  void choose_window() {
    const std::int64_t most = session_.config().max_context;
    window_ = options_.window > 0 ? options_.window : most;
    stride_ = options_.stride > 0 ? options_.stride : std::max<std::int64_t>(window_ / 2, 1);
    if (window_ > most) throw_bad_input("--window {}: the model's max_context is {}", window_, most);
    if (stride_ >= window_)
      throw_bad_input(
          "--stride {} must be below --window {}: else a window's first token has nothing before it", stride_,
          window_);
    if (window_ - 1 > session_.kv_tokens())
      throw_bad_input("--window {} can never fit the KV cache of {} tokens: raise --kv-cache-bytes", window_,
                      session_.kv_tokens());
  }

  void check_output() const {
    std::vector<NamedFile> inputs = files_of(*session_.model().file);
    inputs.push_back({"the text", options_.text});
    std::vector<NamedFile> outputs = session_.observed_files();
    if (has_journal())
      outputs.insert(outputs.end(), {{"-o", options_.output},
                                     {"the journal", journal_path(options_.output)},
                                     {"the file", finished_path(options_.output)}});
    check_outputs(outputs, inputs);
    session_.check_observed();
    if (!has_journal()) return;
    Journal::check_output(options_.output, options_.resume);
  }

  // Rank 0 reads and encodes the text, after a look at where the result goes, before any rank loads the model.
  void read_tokens() {
    std::string bytes;
    all_or_none(job_, [&] {
      if (job_.rank() != 0) return;
      check_output();
      tokens_ = encode(read_text_file(options_.text, "the text"));
      bytes.assign(reinterpret_cast<const char*>(tokens_.data()), tokens_.size() * sizeof tokens_[0]);
    });
    if (job_.size() == 1) return;
    bytes = job_.broadcast(bytes);
    tokens_.resize(bytes.size() / sizeof tokens_[0]);
    std::memcpy(tokens_.data(), bytes.data(), bytes.size());
  }

  std::vector<std::int32_t> encode(const std::string& text) const {
    if (text.empty()) throw_bad_input("{}: the text is empty", options_.text);
    check_utf8(text, options_.text);
    const TokenizerChoice& tokenizer = session_.tokenizer();
    if (tokenizer.tokenizer == nullptr) throw_bad_input("{}: --text needs a tokenizer", tokenizer.why_none);
    std::vector<std::int32_t> ids = tokenizer.tokenizer->encode(text);
    if (const auto bos = session_.config().bos_token_id)
      ids.insert(ids.begin(), static_cast<std::int32_t>(*bos));
    if (ids.size() < 2)
      throw_bad_input("{}: the text has one token and nothing before it: there is nothing to score",
                      options_.text);
    return ids;
  }

  // Of what the result depends on.
  std::string digest() const {
    const std::uint64_t text = XXH3_64bits(tokens_.data(), tokens_.size() * sizeof tokens_[0]);
    return fmt::format("text-{}-{}-{}-{:016x}", window_, stride_, session_.digest(), text);
  }

  // Whether an earlier run has written the same result. Rank 0 looks, and all ranks know.
  bool is_finished_already() {
    if (!options_.resume) return false;
    std::string finished;
    all_or_none(job_, [&] {
      if (job_.rank() != 0 || Journal::exists(options_.output)) return;
      if (!is_finished(options_.output, digest(), windows_->count())) return;
      finished = "yes";
      if (!options_.run.quiet)
        say(fmt::format(
            "{} is complete: the result of an earlier run with the same text, model and options\n",
            options_.output));
    });
    return !job_.broadcast(finished).empty();
  }

  // Rank 0 opens the journal. Of R replicas each takes every R-th window that has no result yet.
  void choose_windows() {
    std::string done;
    all_or_none(job_, [&] {
      if (job_.rank() != 0) return;
      const std::int64_t count = windows_->count();
      sums_.assign(static_cast<std::size_t>(count), 0);
      done.assign(sums_.size(), '0');
      if (has_journal()) journal_.emplace(options_.output, digest(), count, options_.resume);
      for (std::int64_t i = 0; journal_ && i < count; i++)
        if (journal_->has(i)) keep(i, journal_->result(i)), done[static_cast<std::size_t>(i)] = '1';
      progress_.emplace(count, done_, options_.shown_progress());
      session_.note_requests(count, done_);
    });
    done = job_.broadcast(done);
    const Placement& placement = session_.plan().placement;
    for (std::int64_t i = placement.replica; i < windows_->count(); i += placement.replicas)
      if (done[static_cast<std::size_t>(i)] == '0') mine_.push_back(i);
  }

  void keep(std::int64_t window, const std::string& json) {
    sums_[static_cast<std::size_t>(window)] = sum_of(json);
    done_++;
  }

  // On rank 0.
  void store(std::span<const ResultCollector::Result> results) {
    std::vector<Journal::Result> lines;
    for (const auto& [line, json] : results) lines.push_back({line, json});
    if (journal_) journal_->append(lines);
    for (const auto& [line, json] : results) {
      keep(line, json);
      progress_->advance();
    }
    session_.note_done(std::ssize(results));
  }

  void score_windows() {
    const Placement& placement = session_.plan().placement;
    const bool first = job_.rank() == 0;
    std::optional<ResultCollector> collector;
    ResultCollector::Hooks hooks{.format = window_result};
    if (first)
      hooks.store = [this](std::span<const ResultCollector::Result> results, int) { store(results); };
    if (placement.leads_replica())
      collector.emplace(job_, std::move(hooks), first ? static_cast<int>(placement.replicas - 1) : 0,
                        session_.plan().cores.units());
    const auto round = static_cast<std::size_t>(std::max(kRoundTokens / window_, options_.run.max_batch));
    for (std::size_t at = 0; at < mine_.size(); at += round)
      if (!score_round(std::span(mine_).subspan(at, std::min(round, mine_.size() - at)), collector)) break;
    fault_point("finish");
    enter_phase(job_, "collecting the results", true);
    if (collector) collector->finish();
    job_.barrier();
  }

  // False when a signal asked to stop.
  bool score_round(std::span<const std::int64_t> windows, std::optional<ResultCollector>& collector) {
    std::vector<Request> requests(windows.size());
    for (std::size_t i = 0; i < windows.size(); i++) {
      const auto [begin, end, score_from] = windows_->at(windows[i]);
      requests[i].tokens.assign(tokens_.begin() + begin, tokens_.begin() + end);
      requests[i].score_from = score_from - begin;
    }
    std::vector<std::int64_t> all(requests.size());
    std::iota(all.begin(), all.end(), 0);
    Engine::Hooks hooks;
    hooks.stop_requested = stop_signal_received;
    hooks.completed = [&](Completion&& completion) {
      completion.request = windows[static_cast<std::size_t>(completion.request)];
      if (completion.failed())
        throw_failure(
            "the logits of token {} of {} are not finite: the model has weights that are not, or too large "
            "('ptrt inspect --verify' finds the former)",
            windows_->at(completion.request).begin + completion.not_finite_at, options_.text);
      if (collector) collector->deliver(std::move(completion));
    };
    return session_.run(Task::score, requests, all, hooks);
  }

  // Where all windows are there.
  void publish() {
    progress_->end();
    if (done_ < windows_->count()) return;
    // In the order of the windows, whatever replica had them.
    const double sum = std::accumulate(sums_.begin(), sums_.end(), 0.0);
    perplexity_ = std::exp(-sum / static_cast<double>(scored()));
    const std::string result = json_text({{"tokens", scored()},
                                          {"sum_logprob", sum},
                                          {"perplexity", perplexity_},
                                          {"window", window_},
                                          {"stride", stride_}}) +
                               "\n";
    fault_point("publish");
    if (journal_)
      journal_->publish(result);
    else
      print_out("{}", result);
  }

  // How it ended.
  void tell(double seconds) const {
    const std::int64_t count = windows_->count();
    if (done_ < count && !journal_) throw_failure("stopped by a signal");
    if (done_ < count)
      throw Error(ExitCode::stopped,
                  fmt::format("stopped by a signal with {} of {} windows in {}: continue with --resume",
                              done_, count, journal_->path()));
    if (options_.run.quiet) return;
    say(fmt::format("  {} tokens scored in {} windows, {:.2f} s, perplexity {:.6g}\n", scored(), count,
                    seconds, perplexity_));
  }

  std::int64_t scored() const { return std::ssize(tokens_) - 1; }

  const BatchOptions& options_;
  JobComm& job_;
  ModelSession session_;
  std::int64_t window_ = 0, stride_ = 0;
  std::vector<std::int32_t> tokens_;  // of the whole text, bos first where the model has one
  std::optional<TextWindows> windows_;
  std::vector<std::int64_t> mine_;  // this replica's windows
  // Rank 0: the sums of the windows that are done, how many these are, and what shows and keeps them.
  std::vector<double> sums_;
  std::int64_t done_ = 0;
  double perplexity_ = 0;
  std::optional<Journal> journal_;
  std::optional<Progress> progress_;
};

}  // namespace

void run_score_text(const BatchOptions& options, JobComm& job, const ModelMetadata* known) {
  TextScore(options, job, known).run();
}

}  // namespace ptrt
