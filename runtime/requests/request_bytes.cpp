#include "runtime/requests/request_bytes.h"

namespace ptrt {
namespace {

// Every field, in one order for both ways.
template <typename Rules, typename Each>
void for_each_rule(Rules& rules, const Each& each) {
  each(rules.repetition_penalty);
  each(rules.presence_penalty);
  each(rules.frequency_penalty);
  each(rules.bias);
  each(rules.allowed);
  each(rules.bad_words);
  each(rules.min_tokens);
}

template <typename R, typename Each>
void for_each_field(R& request, const Each& each) {
  each(request.line);
  each(request.tokens);
  each(request.max_tokens);
  each(request.score_from);
  each(request.temperature);
  each(request.top_k);
  each(request.top_p);
  each(request.min_p);
  each(request.seed);
  each(request.samples);
  for_each_rule(request.rules, each);
  each(request.stop);
  each(request.stop_tokens);
  each(request.include_stop);
  each(request.ignore_eos);
  each(request.logprobs);
  each(request.top_logprobs);
  each(request.prompt_logprobs);
  each(request.arrival_s);
}

}  // namespace

void append_request(std::string& message, const Request& request) {
  for_each_field(request, [&](const auto& field) { append_bytes(message, field); });
}

Request take_request(ByteReader& bytes) {
  Request request;
  for_each_field(request, [&](auto& field) { bytes.take(field); });
  return request;
}

}  // namespace ptrt
