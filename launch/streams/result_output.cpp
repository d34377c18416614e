#include "launch/streams/result_output.h"

#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/progress.h"
#include "launch/streams/compression.h"
#include "launch/streams/input_file.h"

namespace ptrt {
namespace {

constexpr std::size_t kPiece = std::size_t{1} << 20;
constexpr int kLookMs = 100;
constexpr auto kPatience =
    std::chrono::seconds(5);  // with a reader that takes nothing, once the run is to stop

bool is_plain_file(int descriptor) {
  struct stat status;
  return fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
}

}  // namespace

// A pipe that poll() finds writable takes PIPE_BUF bytes at once; of more, write() could wait.
void StandardOutput::write(std::string_view text) {
  const std::size_t most = is_plain_file(STDOUT_FILENO) ? kPiece : std::size_t{PIPE_BUF};
  while (!text.empty()) {
    wait_for_room();
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), std::min(text.size(), most));
    if (written < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (written <= 0) throw_failure("cannot write to standard output: {}", std::strerror(errno));
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

void StandardOutput::wait_for_room() {
  std::optional<std::chrono::steady_clock::time_point> stop;
  for (;;) {
    pollfd wait{.fd = STDOUT_FILENO, .events = POLLOUT, .revents = 0};
    if (poll(&wait, 1, kLookMs) > 0) return;
    note_progress();
    const auto now = std::chrono::steady_clock::now();
    if (!stop && stop_requested_()) stop = now;
    if (stop && now - *stop > kPatience)
      throw_failure("nobody reads standard output: results are lost that were finished");
  }
}

ResultOutput::ResultOutput(std::string path, Options options)
    : path_(std::move(path)), options_(std::move(options)) {
  if (path_ == "-")
    standard_.emplace(options_.stop_requested);
  else
    file_.emplace(path_);
}

void ResultOutput::expect(std::int64_t line) {
  outstanding_++;
  if (!options_.unordered) expected_.push_back(line);
}

void ResultOutput::add(std::int64_t line, std::string_view json) {
  count_++;
  outstanding_--;
  if (options_.unordered) {
    text_ += json;
    text_ += '\n';
    return;
  }
  held_bytes_ += json.size();
  PTRT_CHECK(held_.emplace(line, json).second);
}

void ResultOutput::write() {
  for (; !expected_.empty(); expected_.pop_front()) {
    const auto at = held_.find(expected_.front());
    if (at == held_.end()) break;
    held_bytes_ -= at->second.size();
    text_ += at->second;
    text_ += '\n';
    held_.erase(at);
  }
  put(std::exchange(text_, {}));
}

void ResultOutput::put(std::string_view text) {
  if (text.empty()) return;
  if (standard_)
    standard_->write(text);
  else
    file_->write(text);
}

void ResultOutput::publish() {
  PTRT_CHECK(has_all() && held_.empty());
  if (standard_) return;
  if (compression_of(path_) == Compression::none) return file_->publish();
  compress(file_->keep());
}

void ResultOutput::compress(const std::string& plain) {
  const auto input = InputFile(plain).open();
  const auto encoder = make_encoder(compression_of(path_));
  OutputFile out(path_);
  std::string piece(kPiece, '\0'), encoded;
  while (const std::size_t got = input->read(piece.data(), piece.size())) {
    encoder->encode(std::string_view(piece).substr(0, got), encoded);
    out.write(encoded);
    encoded.clear();
    note_progress();
  }
  encoder->finish(encoded);
  out.write(encoded);
  out.publish();
  remove_temporary(plain);
}

std::string ResultOutput::end_early() {
  std::erase_if(expected_, [this](std::int64_t line) { return !held_.contains(line); });
  write();
  if (standard_ || count_ == 0) return "";
  return file_->keep();
}

}  // namespace ptrt
