#include "launch/commands/stream_run.h"

#include <fmt/format.h>
#include <unistd.h>

#include <utility>

#include "kernels/base/error.h"
#include "launch/job/process.h"
#include "runtime/journal/finished_run.h"

namespace ptrt {
namespace {

void check_options(const BatchOptions& options, const RequestInput& input) {
  const std::string why = input.is_stream() ? fmt::format("{} can be read only once", input.name())
                                            : "the results go to standard output";
  if (options.resume) throw_bad_input("--resume needs a journal, and there is none where {}", why);
  if (!options.shard.empty())
    throw_bad_input("--shard needs request files, and a file for its results; but {}", why);
}

}  // namespace

StreamRun::StreamRun(const BatchOptions& options, const RequestInput& input)
    : options_(options),
      input_name_(input.name()),
      output_((check_options(options, input), options.output),
              {.unordered = options.unordered, .stop_requested = stop_signal_received}) {}

RequestDealer::Source StreamRun::source(std::function<Supply(StreamedLine&)> next) {
  return [this, next = std::move(next)](StreamedLine& line) {
    try {
      return take(next, line);
    } catch (const Error& error) {
      if (taken_ == 0) throw;
      throw Error(ExitCode::failure, error.what());  // requests have been run by now
    }
  };
}

Supply StreamRun::take(const std::function<Supply(StreamedLine&)>& next, StreamedLine& line) {
  if (output_.is_full()) return Supply::none_yet;
  const Supply supply = next(line);
  if (supply == Supply::line) {
    output_.expect(line.number);
    taken_++;
  }
  input_ended_ = supply == Supply::end;
  if (input_ended_ && taken_ == 0) throw_bad_input("{}: the request file is empty", input_name_);
  return supply;
}

void StreamRun::store(std::span<const ResultCollector::Result> results) {
  for (const auto& [line, json] : results) output_.add(line, json);
  output_.write();
}

void StreamRun::publish() {
  ended_ = true;
  if (!to_standard_output(options_)) unlink(finished_path(options_.output).c_str());  // of an earlier run
  output_.publish();
}

std::string StreamRun::end_early() {
  if (std::exchange(ended_, true) || output_.count() == 0) return "";
  const std::string kept = output_.end_early();
  return fmt::format("{} results were finished{}", output_.count(),
                     kept.empty() ? "" : ": they are in " + kept);
}

}  // namespace ptrt
