#include "launch/jsonl/request_stream.h"

#include <fmt/format.h>

#include <string>
#include <utility>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

constexpr int kMostSkipped = 1024;  // lines, before the caller gets the chance to do something else

void add_line(std::vector<LineRun>& runs, std::int64_t line, std::int64_t step) {
  if (!runs.empty() && line == runs.back().first + runs.back().count * step)
    runs.back().count++;
  else
    runs.push_back({line, 1});
}

// A message about line `number` + 1 of all files, with its place in one of them.
std::string with_place(const std::string& message, std::int64_t number, const std::string& place) {
  const std::string counted = fmt::format("line {} ", number + 1);
  if (message.starts_with(counted)) return fmt::format("{} {}", place, message.substr(counted.size()));
  return fmt::format("{}: {}", place, message);
}

// Whether it may have a key "messages", whose letters may be written as escapes, \u0061 to \u0073.
bool may_be_chat(std::string_view line) {
  const auto has = [line](std::string_view text) { return line.find(text) != std::string_view::npos; };
  return has("\"messages\"") || has("\\u006") || has("\\u007");
}

}  // namespace

RequestFileFacts scan_requests(RequestInput& input, const Shard& shard) {
  RequestInput::Lines lines = input.lines();
  RequestFileFacts facts;
  bool blank = true;
  while (const auto text = lines.next()) {
    const std::int64_t number = facts.lines++;
    if (is_blank(*text)) continue;
    blank = false;
    facts.may_chat = facts.may_chat || may_be_chat(*text);
    if (!shard.has(number)) continue;
    facts.requests++;
    add_line(facts.runs, number, shard.count);
  }
  if (blank) throw_bad_input("{}: the request file is empty", input.name());
  facts.digest = input.digest();
  return facts;
}

RequestStream::RequestStream(RequestInput& input, RequestParser parser,
                             std::function<bool(std::int64_t)> wanted)
    : text_(input.lines()), parser_(std::move(parser)), wanted_(std::move(wanted)) {}

Supply RequestStream::next(StreamedLine& line) {
  for (int skipped = 0; skipped < kMostSkipped; skipped++) {
    const auto text = text_.next();
    if (!text) return text_.waits() ? Supply::none_yet : Supply::end;
    const std::int64_t number = number_++;
    if (is_blank(*text)) continue;
    if (!wanted_(number)) {
      parser_.skip(*text, number);
      continue;
    }
    line.number = number;
    if (!parser_.parse(*text, number, line.line, line.request) && text_.of_several_files())
      line.line.error.message = with_place(line.line.error.message, number, text_.place());
    return Supply::line;
  }
  return Supply::skipped;
}

}  // namespace ptrt
