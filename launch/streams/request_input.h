// The lines of one or several request files, as if they were one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launch/streams/input_file.h"

namespace ptrt {

// Some programs begin a text file with it.
inline constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
std::string_view without_mark(std::string_view begin);

inline constexpr std::size_t kLongestLine = std::size_t{256} << 20;  // bytes

// The lines of an input, which it reads in pieces.
class LineReader {
 public:
  // `name` is for messages.
  LineReader(std::unique_ptr<ByteInput> input, std::string name);

  // The next line without its line break, the first also without a byte order mark, valid until the next call. None at the end, and where the next one has not
  // come yet: then waits(). Throws bad_input for a line longer than kLongestLine, and for compressed bytes.
  std::optional<std::string_view> next();
  bool waits() const { return !at_end_; }
  std::int64_t lines() const { return lines_; }  // given so far

 private:
  std::optional<std::string_view> give(std::size_t stop);

  std::unique_ptr<ByteInput> input_;
  std::string name_;
  std::string buffer_;
  std::size_t at_ = 0, end_ = 0,
              searched_ = 0;  // what is left of the buffer; no line ends before `searched_`
  std::int64_t lines_ = 0;
  bool at_end_ = false;  // of the input
};

class RequestInput {
 public:
  // Throws bad_input, which names the file.
  explicit RequestInput(const std::vector<std::string>& paths);
  explicit RequestInput(const std::string& path) : RequestInput(std::vector{path}) {}

  // Whether some of it can be read only once.
  bool is_stream() const;
  std::string name() const;  // for people
  // Of the bytes of all files and their order. Only where nothing is a stream, after the first reading.
  std::uint64_t digest() const;

  // One reading. One at a time; this object outlives it.
  class Lines {
   public:
    explicit Lines(RequestInput& input) : input_(input) {}
    // As of LineReader.
    std::optional<std::string_view> next();
    bool waits() const { return reader_ && reader_->waits(); }
    // Where the line given last stands: "line 7", of several files "line 7 of b.jsonl".
    std::string place() const;
    bool of_several_files() const { return input_.files_.size() > 1; }

   private:
    RequestInput& input_;
    std::size_t file_ = 0;  // the next one
    std::optional<LineReader> reader_;
  };
  Lines lines() { return Lines(*this); }

 private:
  std::vector<InputFile> files_;
};

// Nothing but spaces: such a line has a number but no result.
bool is_blank(std::string_view line);

}  // namespace ptrt
