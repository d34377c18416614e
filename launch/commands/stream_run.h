// A run without a journal, on rank 0: its requests can be read only once, or its results go to standard output.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "launch/jsonl/request_dealer.h"
#include "launch/jsonl/result_collector.h"
#include "launch/options/command_options.h"
#include "launch/streams/request_input.h"
#include "launch/streams/result_output.h"

namespace ptrt {

inline bool to_standard_output(const BatchOptions& options) {
  return options.output == "-";
}
inline bool is_stream_run(const BatchOptions& options, const RequestInput& input) {
  return input.is_stream() || to_standard_output(options);
}

class StreamRun {
 public:
  // Throws bad_input for options that need a journal.
  StreamRun(const BatchOptions& options, const RequestInput& input);

  // The lines of a stream, of which no more are taken than the results need room. `next` gives them.
  RequestDealer::Source source(std::function<Supply(StreamedLine&)> next);
  bool awaits_input() const { return !input_ended_; }
  void store(std::span<const ResultCollector::Result> results);

  std::int64_t taken() const { return taken_; }           // lines that have or will have a result
  std::int64_t count() const { return output_.count(); }  // of results
  // Whether the input has ended and all results are there.
  bool is_whole() const { return input_ended_ && output_.has_all(); }
  void publish();
  // At an early end, once: keeps what was finished, and says so. Empty: nothing was, or it has been said.
  std::string end_early();

 private:
  Supply take(const std::function<Supply(StreamedLine&)>& next, StreamedLine& line);

  const BatchOptions& options_;
  std::string input_name_;
  ResultOutput output_;
  std::int64_t taken_ = 0;
  bool input_ended_ = false, ended_ = false;
};

}  // namespace ptrt
