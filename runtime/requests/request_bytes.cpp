#include "runtime/requests/request_bytes.h"

namespace ptrt {
namespace {

// Every field of a request but its stop strings, in one order for both ways.
template <typename R, typename Each>
void for_each_field(R& request, const Each& each) {
  each(request.line);
  each(request.tokens);
  each(request.max_tokens);
  each(request.score_from);
  each(request.temperature);
  each(request.top_k);
  each(request.top_p);
  each(request.seed);
  each(request.logprobs);
  each(request.ignore_eos);
  each(request.arrival_s);
}

}  // namespace

void append_request(std::string& message, const Request& request) {
  for_each_field(request, [&](const auto& field) { append_bytes(message, field); });
  append_bytes(message, std::uint64_t{request.stop.size()});
  for (const std::string& text : request.stop) append_bytes(message, text);
}

Request take_request(ByteReader& bytes) {
  Request request;
  for_each_field(request, [&](auto& field) { bytes.take(field); });
  std::uint64_t stops = 0;
  bytes.take(stops);
  for (; stops > 0; stops--) bytes.take(request.stop.emplace_back());
  return request;
}

}  // namespace ptrt
