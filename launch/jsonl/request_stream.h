// The requests of a file, line by line: what rank 0 reads of it as it is needed. A first pass tells what the
// journal must know before the start.
#pragma once

#include <xxhash.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "launch/jsonl/byte_input.h"
#include "launch/jsonl/request_file.h"

namespace ptrt {

struct RequestFileFacts {
  std::uint64_t digest = 0;  // of its bytes
  std::int64_t lines = 0;    // a last one without a line break included
};

// Reads the whole file. Throws bad_input when it has nothing but blank lines.
RequestFileFacts scan_requests(const RequestInput& input);

// The lines of an input, which it reads in pieces.
class LineReader {
 public:
  explicit LineReader(std::unique_ptr<ByteInput> input);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // The next line without its line break, valid until the next call; none at the end.
  std::optional<std::string_view> next();
  // Of the bytes read so far.
  std::uint64_t digest() const;

 private:
  std::unique_ptr<ByteInput> input_;
  XXH3_state_t* digest_;
  std::string buffer_;
  std::size_t at_ = 0, end_ = 0;  // what is left of the buffer
  bool at_end_ = false;           // of the input
};

// One line, and what it asks for unless line.error says why it cannot be run.
struct StreamedLine {
  std::int64_t number = 0;  // in the file, from 0
  RequestLine line;
  Request request;

  bool runs() const { return line.error.code.empty(); }
};

class RequestStream {
 public:
  // `wanted` says which lines are to be run, by number: those without a result yet, or of this job's share of
  // the file. Of the others only the id is looked at. `parser` has been made for this file.
  RequestStream(const RequestInput& input, const RequestFileFacts& facts, RequestParser parser,
                std::function<bool(std::int64_t)> wanted);

  // The next wanted line; none after the last. Throws failure where the file is not as the first pass found
  // it, before it gives a line that differs.
  std::optional<StreamedLine> next();

 private:
  std::int64_t lines_;
  LineReader reader_;
  RequestParser parser_;
  std::function<bool(std::int64_t)> wanted_;
  std::int64_t number_ = 0;  // of the next line
};

}  // namespace ptrt
