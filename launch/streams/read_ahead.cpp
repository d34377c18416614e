#include "launch/streams/read_ahead.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

constexpr std::size_t kPiece = std::size_t{64} << 10;
constexpr std::size_t kMostPieces = 32;
constexpr int kLookMs = 100;  // how often a thread that waits for the writer looks whether it shall end

// Ends where the writer does, or once `ended`.
class StreamInput final : public ByteInput {
 public:
  StreamInput(int descriptor, std::string name, const std::atomic<bool>& ended)
      : descriptor_(descriptor), name_(std::move(name)), ended_(ended) {}

  std::size_t read(char* to, std::size_t bytes) override {
    while (!ended_) {
      // Of a pipe that has had no writer yet this waits for one; a read would find its end.
      pollfd wait{.fd = descriptor_, .events = POLLIN, .revents = 0};
      const int found = poll(&wait, 1, kLookMs);
      if (found == 0 || (found < 0 && errno == EINTR)) continue;
      const ssize_t got = ::read(descriptor_, to, bytes);
      if (got >= 0) return static_cast<std::size_t>(got);
      if (errno != EINTR && errno != EAGAIN)
        throw_bad_input("cannot read {}: {}", name_, std::strerror(errno));
    }
    return 0;
  }

 private:
  int descriptor_;
  std::string name_;
  const std::atomic<bool>& ended_;
};

}  // namespace

ReadAhead::ReadAhead(FileDescriptor stream, std::string name, Compression compression)
    : stream_(std::move(stream)) {
  auto input = decoded(std::make_unique<StreamInput>(stream_.get(), name, ended_), compression, name);
  thread_ = std::thread([this, taken = std::move(input)]() mutable { work(std::move(taken)); });
}

ReadAhead::~ReadAhead() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void ReadAhead::work(std::unique_ptr<ByteInput> input) {
  std::exception_ptr error;
  try {
    for (;;) {
      std::string piece(kPiece, '\0');
      piece.resize(input->read(piece.data(), piece.size()));
      if (piece.empty()) break;
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return pieces_.size() < kMostPieces || ended_; });
      if (ended_) break;
      pieces_.push_back(std::move(piece));
      lock.unlock();
      changed_.notify_all();
    }
  } catch (...) {
    error = std::current_exception();
  }
  const std::lock_guard lock(mutex_);
  error_ = error;
  at_end_ = true;
  changed_.notify_all();
}

bool ReadAhead::ready() {
  const std::lock_guard lock(mutex_);
  return !pieces_.empty() || at_end_;
}

std::size_t ReadAhead::read(char* to, std::size_t bytes) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !pieces_.empty() || at_end_; });
  if (pieces_.empty()) {
    if (error_) std::rethrow_exception(error_);
    return 0;
  }
  const std::string& piece = pieces_.front();
  const std::size_t count = std::min(bytes, piece.size() - taken_);
  std::memcpy(to, piece.data() + taken_, count);
  taken_ += count;
  if (taken_ == piece.size()) {
    pieces_.pop_front();
    taken_ = 0;
    changed_.notify_all();
  }
  return count;
}

}  // namespace ptrt
