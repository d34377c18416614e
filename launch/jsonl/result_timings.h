// What --timings adds to a result line.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/requests/request.h"

namespace ptrt {

// `put_s`: when the request came to its replica, on the clock of the completion's times. One JSON object:
// "queue_ms" until the first step that computes something of it; "ttft_ms" until the first token, or all scores;
// "tpot_ms" between two tokens, null where there are fewer; "cached_tokens" of the prompt, from the prefix cache.
std::string timings_of(const Completion& completion, double put_s);

// Adds it to a result line that is no error: to the object, in the OpenAI form to the response's body.
std::string with_timings(std::string result, bool openai, const std::string& timings);

}  // namespace ptrt
