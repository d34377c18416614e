#include "launch/requests/request_line.h"

namespace ptrt {
namespace {

// In one order for both ways.
template <typename Line, typename Each>
void for_each_field(Line& line, const Each& each) {
  each(line.id);
  each(line.openai);
  each(line.chat);
  each(line.continuation);
  each(line.echo);
  each(line.token_ids);
  each(line.tokens_as_ids);
  each(line.prompt_logprobs);
  each(line.model);
}

}  // namespace

void append_line(std::string& message, const RequestLine& line) {
  for_each_field(line, [&](const auto& field) { append_bytes(message, field); });
}

void take_line(ByteReader& bytes, RequestLine& line) {
  for_each_field(line, [&](auto& field) { bytes.take(field); });
}

}  // namespace ptrt
