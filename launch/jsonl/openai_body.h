// The body of an OpenAI response: a text completion, or a chat completion.
#pragma once

#include <nlohmann/json.hpp>

#include "launch/requests/request_line.h"
#include "model_io/tokenizer/tokenizer.h"
#include "runtime/requests/request.h"

namespace ptrt {

// `tokenizer` null: texts are empty, and choices have the ids of their tokens.
nlohmann::ordered_json openai_body(const RequestLine& line, const Request& request,
                                   const Completion& completion, const Tokenizer* tokenizer);

// "stop" or "length".
const char* name_of(FinishReason reason);
// Prompt and output, of all samples.
nlohmann::ordered_json usage_of(const Request& request, const Completion& completion);

}  // namespace ptrt
