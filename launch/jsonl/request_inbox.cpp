#include "launch/jsonl/request_inbox.h"

#include <utility>

#include "kernels/base/error.h"
#include "runtime/requests/request_bytes.h"

namespace ptrt {
namespace {

// The first byte of a message.
constexpr char kRequests = 'q';
constexpr char kLast = 'e';

}  // namespace

std::string message_of(const std::vector<HeldLine>& requests) {
  std::string message(1, kRequests);
  for (const HeldLine& held : requests) {
    append_line(message, held->line);
    append_request(message, held->request);
  }
  return message;
}

std::string last_message() {
  return std::string(1, kLast);
}

void RequestInbox::put(std::vector<HeldLine> requests) {
  const auto now = std::chrono::steady_clock::now();  // the engine may be quicker than what follows
  {
    const std::lock_guard lock(mutex_);
    for (const HeldLine& line : requests) waiting_.push_back(line->request);
  }
  changed_.notify_one();
  for (HeldLine& line : requests) {
    const std::int64_t number = line->number;
    kept_.emplace(number, Taken{std::move(line), now});
  }
}

void RequestInbox::end() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_one();
}

bool RequestInbox::put_message(std::string_view message) {
  PTRT_CHECK(!message.empty() && (message[0] == kRequests || message[0] == kLast));
  if (message[0] == kLast) {
    end();
    return true;
  }
  std::vector<HeldLine> requests;
  for (ByteReader bytes(message.substr(1)); !bytes.empty();) {
    auto& [number, line, request] = *requests.emplace_back(std::make_unique<StreamedLine>());
    take_line(bytes, line);
    request = take_request(bytes);
    number = request.line;
  }
  put(std::move(requests));
  return false;
}

void RequestInbox::sign_of_life() {
  {
    const std::lock_guard lock(mutex_);
    signs_++;
  }
  changed_.notify_one();
}

void RequestInbox::fail(std::exception_ptr error) {
  {
    const std::lock_guard lock(mutex_);
    error_ = std::move(error);
  }
  changed_.notify_one();
}

RequestInbox::Taken RequestInbox::take_out(std::int64_t line) {
  auto node = kept_.extract(line);
  PTRT_CHECK(!node.empty());
  return std::move(node.mapped());
}

bool RequestInbox::take(std::vector<Request>& requests, std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  if (patience.count() > 0) {
    const auto has_news = [&] { return !waiting_.empty() || ended_ || error_; };
    changed_.wait_for(lock, patience, has_news);
    changed_.wait(lock, [&] { return has_news() || signs_ == 0 || signs_ != signs_seen_; });
    signs_seen_ = signs_;
  }
  if (error_) std::rethrow_exception(error_);
  if (requests.empty())
    requests.swap(waiting_);
  else
    requests.insert(requests.end(), std::make_move_iterator(waiting_.begin()),
                    std::make_move_iterator(waiting_.end()));
  waiting_.clear();
  return !ended_;
}

}  // namespace ptrt
