// The requests of one or several files, line by line: what rank 0 reads of them as it is needed. Of plain files a first
// pass tells what the journal must know before the start.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launch/requests/request_parser.h"
#include "launch/streams/request_input.h"
#include "runtime/job/shard.h"

namespace ptrt {

// Lines that are not blank, of a shard: `count` of them from `first` on, in steps of the number of shards.
struct LineRun {
  std::int64_t first = 0, count = 0;
  bool operator==(const LineRun&) const = default;
};

struct RequestFileFacts {
  std::uint64_t digest = 0;        // of all bytes
  std::int64_t lines = 0;          // blank ones included; a last one without a line break too
  std::int64_t requests = 0;       // lines of the shard that are not blank
  std::vector<LineRun> runs = {};  // these
  bool may_chat = false;           // a line of any shard may have messages
};

// Reads everything. Throws bad_input when there is nothing but blank lines.
RequestFileFacts scan_requests(RequestInput& input, const Shard& shard = {});

// One line, and what it asks for unless line.error says why it cannot be run.
struct StreamedLine {
  std::int64_t number = 0;  // in the file, from 0
  RequestLine line;
  Request request;

  bool runs() const { return line.error.code.empty(); }
};
// A StreamedLine is large and passes through several lists, so they hold pointers.
using HeldLine = std::unique_ptr<StreamedLine>;

// What there is of the next line: the line; nothing yet, but lines were passed over, so ask again; nothing until the
// writer of the input has written more; no more lines.
enum class Supply : std::uint8_t { line, skipped, none_yet, end };

class RequestStream {
 public:
  // `wanted` says which lines are to be run, by number: those without a result yet, or of this job's share of
  // the file. Of the others only the id is looked at. `parser` has been made for this file.
  RequestStream(RequestInput& input, RequestParser parser, std::function<bool(std::int64_t)> wanted);

  // The next wanted line; blank lines are none. Throws failure where a plain file is not as the first pass found it,
  // before it gives a line that differs.
  Supply next(StreamedLine& line);
  std::int64_t lines() const { return number_; }  // read so far

 private:
  RequestInput::Lines text_;
  RequestParser parser_;
  std::function<bool(std::int64_t)> wanted_;
  std::int64_t number_ = 0;  // of the next line
};

}  // namespace ptrt
