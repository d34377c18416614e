// The tokens that an answer tells of, with what it tells of each: those of an output, after the prompt's with echo.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "launch/requests/request_line.h"
#include "model_io/tokenizer/tokenizer.h"
#include "runtime/requests/request.h"

namespace ptrt {

// One token. There are no log-probabilities of a prompt's first one.
struct AnswerToken {
  std::int32_t id = 0;
  std::optional<float> logprob;
  std::span<const TokenLogprob> top;  // the likeliest alternatives, descending
};

// The spans are those of the completion, which must outlive them. Log-probabilities as far as the request asks.
std::vector<AnswerToken> answer_tokens(const RequestLine& line, const Request& request,
                                       const Completion& completion, const Output& output);
// The prompt alone, with as many alternatives as the line asks for. Only if it asks.
std::vector<AnswerToken> prompt_answer(const RequestLine& line, const Request& request,
                                       const Completion& completion);

// The text of an output, with echo after the prompt's, as valid UTF-8; the prompt as its tokens decode.
std::string answer_text(const RequestLine& line, const Request& request, const Output& output,
                        const Tokenizer& tokenizer);

// Sample 0 and the others.
std::vector<const Output*> samples_of(const Completion& completion);
// Of all samples together.
std::int64_t generated_tokens(const Completion& completion);

}  // namespace ptrt
