#include "launch/commands/chat_lines.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <xxhash.h>

#include <ctime>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "launch/job/process.h"
#include "runtime/journal/journal.h"

namespace ptrt {
namespace {

constexpr std::string_view kMark = "-chat:";
constexpr std::size_t kHexDigits = 16, kDateLength = 10;

std::string read_template(const BatchOptions& options, const ModelSource& model) {
  if (options.chat_template.empty()) return model.chat_template;
  std::string text = read_text_file(options.chat_template, "the chat template");
  if (text.empty()) throw_bad_input("the chat template {} is empty", options.chat_template);
  return text;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return fmt::format("{:%Y-%m-%d}", local);
}

std::string date_of_run(const BatchOptions& options, bool dated) {
  if (!options.chat_date.empty()) return options.chat_date;
  if (dated && !options.shard.empty())
    throw_bad_input(
        "the chat template asks for the day's date (strftime_now), and the shards of one job may start on "
        "different days: give all of them the same --chat-date");
  if (dated && options.resume)
    if (const auto digest = Journal::digest_at(options.output))
      if (auto date = chat_date_of(*digest)) return *date;
  return today();
}

}  // namespace

ChatLines::ChatLines(const BatchOptions& options, const ModelSource& model, bool expected)
    : template_(read_template(options, model)),
      expected_(expected && !template_.empty()),
      dated_(expected_ && template_.find("strftime_now") != std::string::npos),
      date_(date_of_run(options, dated_)),
      helper_({}, stop_signal_received),
      renderer_(helper_, template_, date_, model.config, model.tokenizer),
      outputs_(helper_) {}

std::string ChatLines::identity() const {
  if (!expected_) return "";
  return fmt::format("{}{:016x}{}", kMark, XXH3_64bits(template_.data(), template_.size()),
                     dated_ ? ":" + date_ : std::string());
}

std::optional<std::string> chat_date_of(const std::string& digest) {
  const std::size_t mark = digest.find(kMark);
  if (mark == std::string::npos) return std::nullopt;
  const std::size_t end = mark + kMark.size() + kHexDigits;
  if (end >= digest.size() || digest[end] != ':') return std::nullopt;
  return digest.substr(end + 1, kDateLength);
}

}  // namespace ptrt
