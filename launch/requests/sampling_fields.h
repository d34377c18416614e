// What a request line says about the output: how tokens are chosen, where it ends, what the answer says of it.
#pragma once

#include "launch/requests/fields.h"
#include "launch/requests/prompt_reader.h"
#include "launch/requests/request_line.h"
#include "model_io/config/model_config.h"

namespace ptrt {

// max_tokens or max_completion_tokens; none: not given.
std::optional<std::int64_t> read_max_tokens(const Fields& fields);
// logprobs, which `score` has too. The plain form: true or a number of alternatives. A body of /v1/completions: that
// number. Chat: true, and the number in a field of its own.
void read_logprobs(const Fields& fields, const RequestLine& line, Request& request);
// All the others, and logprobs. The request's tokens and max_tokens are set.
void read_sampling(const Fields& fields, const PromptReader& prompts, RequestLine& line, Request& request);

}  // namespace ptrt
