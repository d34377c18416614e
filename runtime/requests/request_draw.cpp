#include "runtime/requests/request_draw.h"

#include <utility>

#include "kernels/base/error.h"
#include "runtime/requests/request_bytes.h"

namespace ptrt {

std::int64_t RequestDraw::take(std::chrono::milliseconds patience) {
  if (ended_) return 0;
  PTRT_CHECK(source_ != nullptr && taken_.empty());
  ended_ = !source_->take(taken_, patience);
  message_.clear();
  if (replica_.size() == 1) return std::ssize(taken_);
  for (const Request& request : taken_) append_request(message_, request);
  return std::ssize(message_);
}

std::vector<Request> RequestDraw::share(std::int64_t bytes) {
  if (replica_.size() == 1) return std::exchange(taken_, {});
  if (source_ != nullptr) {
    std::vector<Outgoing> sends;
    for (int rank = 1; rank < replica_.size(); rank++)
      sends.push_back({rank, message_.data(), message_.size()});
    replica_.exchange(sends, {});
    return std::exchange(taken_, {});
  }
  message_.resize(static_cast<std::size_t>(bytes));
  const Incoming message{0, message_.data(), message_.size()};
  replica_.exchange({}, {&message, 1});
  std::vector<Request> requests;
  for (ByteReader reader(message_); !reader.empty();) requests.push_back(take_request(reader));
  return requests;
}

}  // namespace ptrt
