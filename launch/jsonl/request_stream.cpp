#include "launch/jsonl/request_stream.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/progress.h"

namespace ptrt {
namespace {

constexpr std::size_t kPiece = std::size_t{256} << 10;  // read at once

}  // namespace

RequestFileFacts scan_requests(const RequestInput& input) {
  LineReader reader(input.open());
  RequestFileFacts facts;
  bool blank = true;
  while (const auto line = reader.next()) {
    facts.lines++;
    blank = blank && line->find_first_not_of(" \t\r") == std::string_view::npos;
  }
  if (blank) throw_bad_input("{}: the request file is empty", input.path());
  facts.digest = reader.digest();
  return facts;
}

LineReader::LineReader(std::unique_ptr<ByteInput> input)
    : input_(std::move(input)), digest_(XXH3_createState()) {
  XXH3_64bits_reset(digest_);
}

LineReader::~LineReader() {
  XXH3_freeState(digest_);
}

std::uint64_t LineReader::digest() const {
  return XXH3_64bits_digest(digest_);
}

std::optional<std::string_view> LineReader::next() {
  for (std::size_t searched = at_;;) {
    const auto* found =
        static_cast<const char*>(std::memchr(buffer_.data() + searched, '\n', end_ - searched));
    if (found != nullptr || (at_end_ && at_ < end_)) {
      const std::size_t stop = found != nullptr ? static_cast<std::size_t>(found - buffer_.data()) : end_;
      const std::string_view line(buffer_.data() + at_, stop - at_);
      at_ = std::min(stop + 1, end_);
      return line;
    }
    if (at_end_) return std::nullopt;
    // What is left of a line moves to the front; a longer one makes the buffer grow.
    std::memmove(buffer_.data(), buffer_.data() + at_, end_ - at_);
    end_ -= at_;
    at_ = 0;
    searched = end_;
    buffer_.resize(std::max(buffer_.size(), end_ + kPiece));
    const std::size_t got = input_->read(buffer_.data() + end_, buffer_.size() - end_);
    note_progress();
    XXH3_64bits_update(digest_, buffer_.data() + end_, got);
    end_ += got;
    at_end_ = got == 0;
  }
}

RequestStream::RequestStream(const RequestInput& input, const RequestFileFacts& facts, RequestParser parser,
                             std::function<bool(std::int64_t)> wanted)
    : lines_(facts.lines), reader_(input.open()), parser_(std::move(parser)), wanted_(std::move(wanted)) {}

std::optional<StreamedLine> RequestStream::next() {
  while (const auto text = reader_.next()) {
    const std::int64_t number = number_++;
    if (!wanted_(number)) {
      parser_.skip(*text, number);
      continue;
    }
    StreamedLine line{number, {}, {}};
    parser_.parse(*text, number, line.line, line.request);
    return line;
  }
  PTRT_CHECK(number_ == lines_);
  return std::nullopt;
}

}  // namespace ptrt
