#include "launch/streams/request_input.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/progress.h"
#include "launch/streams/compression.h"

namespace ptrt {
namespace {

constexpr std::size_t kPiece = std::size_t{256} << 10;  // read at once

}  // namespace

LineReader::LineReader(std::unique_ptr<ByteInput> input, std::string name)
    : input_(std::move(input)), name_(std::move(name)) {}

std::optional<std::string_view> LineReader::give(std::size_t stop) {
  std::string_view line(buffer_.data() + at_, stop - at_);
  if (lines_ == 0) line = without_mark(line);
  at_ = searched_ = std::min(stop + 1, end_);
  if (lines_++ == 0)
    if (const Compression kind = compression_by_content(line); kind != Compression::none)
      throw_bad_input("{} is {} data, but its name does not end in {}", name_, name_of(kind),
                      kind == Compression::gzip ? ".gz" : ".zst");
  return line;
}

std::optional<std::string_view> LineReader::next() {
  for (;;) {
    const auto* found =
        static_cast<const char*>(std::memchr(buffer_.data() + searched_, '\n', end_ - searched_));
    if (found != nullptr) return give(static_cast<std::size_t>(found - buffer_.data()));
    searched_ = end_;
    if (at_end_) return at_ < end_ ? give(end_) : std::nullopt;
    if (!input_->ready()) return std::nullopt;
    if (end_ - at_ > kLongestLine)
      throw_bad_input("{}: line {} is longer than {} MiB", name_, lines_ + 1, kLongestLine >> 20);
    // What is left of a line moves to the front; a longer one makes the buffer grow.
    if (at_ > 0) std::memmove(buffer_.data(), buffer_.data() + at_, end_ - at_);
    end_ -= at_;
    searched_ -= at_;
    at_ = 0;
    buffer_.resize(std::max(buffer_.size(), end_ + kPiece));
    const std::size_t got = input_->read(buffer_.data() + end_, buffer_.size() - end_);
    note_progress();
    end_ += got;
    at_end_ = got == 0;
  }
}

RequestInput::RequestInput(const std::vector<std::string>& paths) {
  PTRT_CHECK(!paths.empty());
  for (const std::string& path : paths) {
    if (path == "-" && std::ranges::count(paths, path) > 1)
      throw_bad_input("standard input can be read only once");
    files_.emplace_back(path);
  }
}

bool RequestInput::is_stream() const {
  return std::ranges::any_of(files_, &InputFile::is_stream);
}

std::string RequestInput::name() const {
  if (files_.size() == 1) return files_[0].name();
  return fmt::format("{} and {} more", files_[0].name(), files_.size() - 1);
}

std::uint64_t RequestInput::digest() const {
  if (files_.size() == 1) return files_[0].digest();
  std::vector<std::uint64_t> parts;
  for (const InputFile& file : files_) parts.insert(parts.end(), {file.digest(), file.bytes()});
  return XXH3_64bits(parts.data(), parts.size() * sizeof parts[0]);
}

std::optional<std::string_view> RequestInput::Lines::next() {
  for (;;) {
    if (!reader_) {
      if (file_ == input_.files_.size()) return std::nullopt;
      InputFile& file = input_.files_[file_++];
      reader_.emplace(file.open(), file.name());
    }
    if (const auto line = reader_->next()) return line;
    if (reader_->waits()) return std::nullopt;
    if (file_ == input_.files_.size()) return std::nullopt;
    reader_.reset();
  }
}

std::string RequestInput::Lines::place() const {
  const std::string line = fmt::format("line {}", reader_->lines());
  if (input_.files_.size() == 1) return line;
  return fmt::format("{} of {}", line, input_.files_[file_ - 1].name());
}

std::string_view without_mark(std::string_view begin) {
  if (begin.starts_with(kByteOrderMark)) begin.remove_prefix(kByteOrderMark.size());
  return begin;
}

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\r") == std::string_view::npos;
}

}  // namespace ptrt
