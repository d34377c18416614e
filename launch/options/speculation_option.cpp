// The option that makes tokens ahead of the model, for the commands that generate.
#include "launch/options/parsers.h"
#include "runtime/speculate/drafter.h"

namespace ptrt {
namespace {

constexpr std::int64_t kDrafts = 7;  // with the token before them a step of 8 rows

// The drafts that "off", "ngram" or "ngram:K" asks for.
std::optional<std::int64_t> parse_drafts(const std::string& text) {
  constexpr std::string_view kNgram = "ngram";
  if (text == "off") return 0;
  if (!text.starts_with(kNgram)) return std::nullopt;
  if (text == kNgram) return kDrafts;
  if (text[kNgram.size()] != ':') return std::nullopt;
  const auto drafts = parse_number<std::int64_t>(text.substr(kNgram.size() + 1));
  return drafts && 1 <= *drafts && *drafts <= kMaxDrafts ? drafts : std::nullopt;
}

CLI::Option* add_speculate(CLI::App& command, ModelRunOptions& run) {
  begin_group(command, "Speculation");
  return command
      .add_option_function<std::string>(
          "--speculate", [&run](const std::string& text) { run.drafts = *parse_drafts(text); },
          "ngram: where the last tokens of a sequence occurred in it before, up to K of the tokens that\n"
          "followed (default 7) are fed with the next one in the same step, and those that the model gives\n"
          "too are kept: fewer steps where a text repeats itself, and the same results")
      ->check([](const std::string& text) {
        return parse_drafts(text)
                   ? std::string()
                   : fmt::format("'{}': expected off, ngram or ngram:K, K in 1..{}", text, kMaxDrafts);
      })
      ->type_name("off|ngram[:K]")
      ->default_str("off");
}

}  // namespace

void add_speculation(CLI::App& command, ModelRunOptions& run) {
  add_speculate(command, run);
}

void add_bench_speculation(CLI::App& command, BenchOptions& options) {
  auto* speculate = add_speculate(command, options.run);
  command
      .add_option("--force-acceptance", options.forced_acceptance,
                  "Drafts are not n-grams but the tokens of a first run without them, K a step, each made\n"
                  "wrong so often that this share is right: what an acceptance would be worth")
      ->transform(in_range(0.0, 1.0))
      ->needs(speculate);
}

}  // namespace ptrt
