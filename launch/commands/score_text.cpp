// `ptrt score MODEL --text FILE`: the perplexity of a text by sliding window.
//
// Every rank holds the text's token ids once. Windows become requests a round at a time, so that memory does
// not grow with window / stride; a window's sum is all that is kept of it.
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "launch/commands/commands.h"
#include "launch/commands/model_output.h"
#include "launch/commands/report_files.h"
#include "launch/job/process.h"
#include "launch/job/progress.h"
#include "launch/job/standard_streams.h"
#include "launch/session/model_session.h"
#include "launch/session/summary.h"
#include "model_io/text/unicode.h"
#include "runtime/serving/text_windows.h"

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kRoundTokens = std::int64_t{1} << 22;  // of the requests of a round, 16 MiB

void check_utf8(const std::string& text, const std::string& path) {
  const std::string sound = sanitize_utf8(text);
  const auto [bad, replaced] = std::ranges::mismatch(text, sound);
  if (bad != text.end())
    throw_bad_input("{}: not valid UTF-8 at byte {} (0x{:02x})", path, bad - text.begin(),
                    static_cast<unsigned char>(*bad));
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
    if (job_.rank() == 0 && !options_.run.quiet) say(describe_run(session_) + "\n");
    const auto start = Clock::now();
    score_windows();
    enter_phase(job_, "collecting the results", true);
    const double sum = total();
    const std::chrono::duration<double> seconds = Clock::now() - start;
    all_or_none(job_, [&] {
      if (job_.rank() == 0) report(sum, seconds.count());
    });
  }

 private:
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

  // Rank 0 reads and encodes the text, after a look at where the result goes, before any rank loads the model.
  void read_tokens() {
    std::string bytes;
    all_or_none(job_, [&] {
      if (job_.rank() != 0) return;
      std::vector<NamedFile> inputs = files_of(*session_.model().file);
      inputs.push_back({"the text", options_.text});
      check_reports(std::vector<NamedFile>{{"-o", options_.output}}, inputs);
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

  // Of R replicas each takes every R-th window. Its ranks run the same rounds.
  void score_windows() {
    const Placement& placement = session_.plan().placement;
    const TextWindows windows(std::ssize(tokens_), window_, stride_);
    const std::int64_t of_replica =
        (windows.count() - placement.replica + placement.replicas - 1) / placement.replicas;
    const std::int64_t round = std::max(kRoundTokens / window_, options_.run.max_batch);
    if (job_.rank() == 0) progress_.emplace(of_replica, 0, options_.run.quiet);
    sums_.assign(static_cast<std::size_t>(of_replica), 0);
    for (std::int64_t first = 0; first < of_replica; first += round) {
      std::vector<TextWindow> of_round;
      for (std::int64_t i = first; i < std::min(first + round, of_replica); i++)
        of_round.push_back(windows.at(placement.replica + i * placement.replicas));
      score_round(of_round, first);
    }
    if (progress_) progress_->end();
  }

  void score_round(const std::vector<TextWindow>& windows, std::int64_t first) {
    std::vector<Request> requests(windows.size());
    for (std::size_t i = 0; i < windows.size(); i++) {
      const auto& [begin, end, score_from] = windows[i];
      requests[i].tokens.assign(tokens_.begin() + begin, tokens_.begin() + end);
      requests[i].score_from = score_from - begin;
    }
    std::vector<std::int64_t> all(requests.size());
    std::iota(all.begin(), all.end(), 0);
    Engine::Hooks hooks;
    hooks.stop_requested = stop_signal_received;
    hooks.completed = [&](Completion&& completion) {
      if (completion.failed())
        throw_failure(
            "the logits of token {} of {} are not finite: the model has weights that are not, or too large "
            "('ptrt inspect --verify' finds the former)",
            windows[static_cast<std::size_t>(completion.request)].begin + completion.not_finite_at,
            options_.text);
      sums_[static_cast<std::size_t>(first + completion.request)] =
          std::accumulate(completion.logprobs.begin(), completion.logprobs.end(), 0.0);
      if (progress_) progress_->advance();
    };
    if (!session_.run(Task::score, requests, all, hooks)) throw_failure("stopped by a signal");
  }

  // On rank 0, in the order of the windows, whatever replica had them.
  double total() {
    const Placement& placement = session_.plan().placement;
    std::string mine;
    if (placement.leads_replica())
      mine.assign(reinterpret_cast<const char*>(sums_.data()), sums_.size() * sizeof sums_[0]);
    std::vector<std::string> all = job_.gather(mine);
    std::erase_if(all, [](const std::string& sums) { return sums.empty(); });
    double sum = 0;
    for (std::size_t i = 0; !all.empty() && i * sizeof sum < all[0].size(); i++)
      for (const std::string& sums : all) {
        if (i * sizeof sum >= sums.size()) continue;
        double one = 0;
        std::memcpy(&one, sums.data() + i * sizeof one, sizeof one);
        sum += one;
      }
    return sum;
  }

  void report(double sum, double seconds) const {
    const std::int64_t scored = std::ssize(tokens_) - 1;
    const double perplexity = std::exp(-sum / static_cast<double>(scored));
    const nlohmann::ordered_json result{{"tokens", scored},
                                        {"sum_logprob", sum},
                                        {"perplexity", perplexity},
                                        {"window", window_},
                                        {"stride", stride_}};
    if (options_.output.empty()) {
      print_out("{}\n", json_text(result));
    } else {
      OutputFile out(options_.output);
      out.write(json_text(result) + "\n");
      out.publish();
    }
    if (options_.run.quiet) return;
    say(fmt::format("  {} tokens scored in {} windows, {:.2f} s, perplexity {:.6g}\n", scored,
                    TextWindows(std::ssize(tokens_), window_, stride_).count(), seconds, perplexity));
  }

  const BatchOptions& options_;
  JobComm& job_;
  ModelSession session_;
  std::int64_t window_ = 0, stride_ = 0;
  std::vector<std::int32_t> tokens_;  // of the whole text, bos first where the model has one
  std::vector<double> sums_;          // of this replica's windows
  std::optional<Progress> progress_;  // rank 0: of its replica's windows
};

}  // namespace

void run_score_text(const BatchOptions& options, JobComm& job, const ModelMetadata* known) {
  TextScore(options, job, known).run();
}

}  // namespace ptrt
